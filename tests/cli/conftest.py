import json

import pytest

from patnet.cli import main


@pytest.fixture
def refused(capfd):
    """Gives the error message of bad input: code 2, one line, and nothing on standard output."""

    def refused(*argv):
        code = main([str(word) for word in argv])
        out, err = capfd.readouterr()
        assert (code, out) == (2, ""), err
        assert err.startswith("patnet: "), err
        assert err.count("\n") == 1, err
        return err

    return refused


@pytest.fixture
def json_of(capfd):
    """Gives what `patnet ... --json` prints."""

    def json_of(*argv, code=0):
        capfd.readouterr()
        assert main([*map(str, argv), "--json"]) == code, capfd.readouterr().err
        return json.loads(capfd.readouterr().out)

    return json_of
