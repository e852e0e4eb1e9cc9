"""Every layout and file format of feedback, into one kind of record."""
