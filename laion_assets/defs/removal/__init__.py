"""What a change of the lists concerns (`survey`), and the runs that rebuild it (`remake`)."""
