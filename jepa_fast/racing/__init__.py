"""Time to quality: fixed thresholds, a clock that stops once they are met, records and their checker."""
