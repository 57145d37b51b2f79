#!/bin/sh
# Run the tests of the core on another Python; a machine that does not have it skips it.
set -eu
version=$1
python=""
for candidate in "python$version" "$HOME"/.pyenv/versions/"$version".*/bin/python; do
    if "$candidate" -c "import sys; sys.exit(sys.version_info[:2] != tuple(map(int, '$version'.split('.'))))" 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "Python $version is not on this machine: skipped"
    exit 0
fi
venv=.venv-$version
if [ ! -e "$venv/.installed" ] || [ pyproject.toml -nt "$venv/.installed" ]; then
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[local,optimize,service]' --group test
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps $NO_DEPS
    touch "$venv/.installed"
fi
# The core, with the processes of the journal; the command line is the door to all else.
tests="tests/schema tests/data tests/nodes tests/record tests/journal tests/agent tests/runner tests/as_agent"
tests="$tests tests/cli/test_cli.py tests/test_exports.py"
echo "Python $version, $tests:"
# shellcheck disable=SC2086
exec "$venv/bin/python" -m pytest -n auto --dist loadfile -m "not types and not local and not browser" $tests
