"""What a training needs before it is started: memory, hours, money, storage (`python -m cslm.plan --help`)."""
