"""The one exception of storage: every error of a file, a database or a primary that a caller may handle is one."""


class StorageError(Exception):
    """Records cannot be written or read. The text is for operators: it says where, why, and what to do."""
