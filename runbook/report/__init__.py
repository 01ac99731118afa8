"""What people read: pure projections of the journal. Every number in them comes from it."""
