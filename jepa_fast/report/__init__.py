"""What a run has become, as one page: read from its folder alone, in figures and in words."""
