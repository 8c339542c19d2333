# Sourced by the other scripts with the extras they need (jets,demo): makes .venv and installs mmtok with these, pinned.
# Done again only when one of them is not installed yet, or pyproject.toml, constraints.txt or this file has changed.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    for python in python3.11 python3; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "needs Python 3.11 or newer with its venv module (Debian: apt install python3 python3-venv)" >&2
    return 1
}

# holds HAVE WANTED: whether a list of extras, a,b,c, has every one of another
holds() {
    local extra
    for extra in ${2//,/ }; do
        [[ ",$1," == *",$extra,"* ]] || return 1
    done
}

install_mmtok() {
    local wanted=$1 stamp=.venv/mmtok-installed python pins installed=""
    if [ ! -x .venv/bin/python ]; then
        python=$(find_python)
        echo "making .venv with $python"
        if ! "$python" -m venv .venv; then
            rm -rf .venv  # without python3-venv it is left half-made
            return 1
        fi
    fi
    pins=$(cksum pyproject.toml constraints.txt scripts/setup.sh)
    # the stamp: the extras in one line, then the sums of the files they were installed from
    if [ -f "$stamp" ] && [ "$(tail -n +2 "$stamp")" = "$pins" ]; then
        installed=$(head -n 1 "$stamp")
    fi
    if [ -n "$installed" ] && holds "$installed" "$wanted"; then
        echo ".venv stands"
        return
    fi
    echo "installing mmtok and its extras $wanted into .venv (several GB, some minutes the first time)"
    # pythia8mc and fastjet are large C++ libraries: wheels only, so that a machine without one says so at once
    .venv/bin/python -m pip install --disable-pip-version-check --only-binary=pythia8mc,fastjet \
        -c constraints.txt -e ".[$wanted]"
    holds "$wanted" "$installed" || wanted+=,$installed  # what stood before still stands
    printf '%s\n%s\n' "$wanted" "$pins" > "$stamp"
}

install_mmtok "$1"
