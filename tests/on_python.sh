#!/bin/sh
# Run the suite, without type checks, the embedded model and the browser, on another Python; a machine that does not have
# it skips it.
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
# What starts many processes takes long and is left to the first Python; tuning is run on the newest one as well.
left_out="tests/cli tests/service tests/tracing/test_processes.py"
if [ "$version" = 3.12 ]; then
    left_out="$left_out tests/graphs tests/optimize"
fi
ignored=""
for path in $left_out; do
    ignored="$ignored --ignore $path"
done
echo "Python $version, without $left_out:"
# shellcheck disable=SC2086
exec "$venv/bin/python" -m pytest -n auto --dist loadfile -m "not types and not local and not browser" $ignored
