"""What hooktrain costs, and how it compares with others; see README.md."""
