"""Online features on the operator's side: filling the store from files, looking at it, and comparing it with a file.

handlers/features/stored.py says in which form values stand there.
"""
