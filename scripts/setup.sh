# Sourced by the other scripts: makes .venv and installs mmtok with all extras, pinned.
# Done again only when pyproject.toml, constraints.txt or this file has changed.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    for python in python3.11 python3; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "needs Python 3.11 or newer with its venv module (Debian: apt install python3.11 python3.11-venv)" >&2
    return 1
}

install_mmtok() {
    local python stamp wanted
    if [ ! -x .venv/bin/python ]; then
        python=$(find_python)
        echo "making .venv with $python"
        if ! "$python" -m venv .venv; then
            rm -rf .venv  # without python3-venv it is left half-made
            return 1
        fi
    fi
    stamp=.venv/mmtok-installed
    wanted=$(cksum pyproject.toml constraints.txt scripts/setup.sh)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        echo ".venv stands"
        return
    fi
    echo "installing mmtok and its extras into .venv (some minutes the first time)"
    # pythia8mc and fastjet are large C++ libraries: wheels only, so that a machine without one says so at once
    .venv/bin/python -m pip install --disable-pip-version-check --only-binary=pythia8mc,fastjet \
        -c constraints.txt -e '.[jets,demo,eval,report,hub,test]'
    echo "$wanted" > "$stamp"
}

install_mmtok
