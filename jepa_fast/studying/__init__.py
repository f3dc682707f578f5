"""Many runs, measured alike: each in processes of its own, kept as a small record, shown in tables and plots."""
