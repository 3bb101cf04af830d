"""What runs a sweep: the study, Tune's scheduler and search, trials, tracking, storage."""
