"""Cases of a table, and what they have in common."""

from peer import *  # noqa: F403

CASES = []


def case(name, own=(), preface=True):
    """Registers a function of a fresh connection."""

    def register(run):
        CASES.append((name, run, own, preface))
        return run

    return register


def rows(section, table, own=()):
    """Registers a case for each row: its name, and a function of a fresh connection."""
    for name, run in table:
        CASES.append((f"{section}: {name}", run, own, True))


def sends(make, then):
    """A case: these bytes, then what must be seen."""

    def run(c):
        c.send(make(c))
        then(c)

    return run


def connection(*codes):
    return lambda c: c.connection_error(*codes)


def stream(*codes, id=1):
    return lambda c: c.stream_error(id, *codes)


def fine(c):
    c.alive()


def answered(c):
    c.response(1)
    c.alive()


def posted(make, then):
    """A case: an open request, these bytes, then what must be seen."""

    def run(c):
        c.post(1)
        c.send(make(c))
        then(c)

    return run


__all__ = [name for name in dir() if not name.startswith("_")]
