"""What a plan is made of: what cycles cost here, what they yield, and the best of all ways."""
