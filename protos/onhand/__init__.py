"""The public contract of Onhand, one subpackage for each version of it."""
