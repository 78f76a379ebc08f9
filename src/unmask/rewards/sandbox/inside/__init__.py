"""What runs inside the jail. The files are sent there as text, so they import the standard library and each other.

`supervisor` is the program; it runs on the interpreter of the jail, Python 3.10 or newer.
"""
