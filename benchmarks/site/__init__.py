"""The documentation site: reference pages made from the code, and a check of the prose."""
