# shellcheck shell=bash
# Shared by packaging/demo and packaging/test: talking, and finding or installing what they need.
#
# Nothing is taken from outside the package sources this machine already uses: its own Debian mirror, and pip and go as
# they are configured. Programs that Debian 12 lacks in the release we need come from newer suites of the same mirror;
# they are unpacked into the lab's directory, never installed, and the machine's own package sources stay as they are.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
LAB=${NIXSNAP_LAB:-/var/cache/nixsnap-lab}
export NIXSNAP_LAB=$LAB
export HOME=${HOME:-/root} # go and pip want one, and a bare CI shell may have none

say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

require_root() {
    [ "$(id -u)" -eq 0 ] || die "needs root for mounts, containers and packages; run it with sudo: sudo $0"
}

# have_all PROGRAM...: whether each is on PATH.
have_all() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || return 1
    done
}

# install_packages PACKAGE...: from the suites this machine is set up for.
install_packages() {
    local package missing=()
    for package in "$@"; do
        dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    have_all apt-get || die "this is no Debian; install these yourself: ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null
}

# need PROGRAM PACKAGE: note the package in the array `wanted` when the program is missing.
need() {
    have_all "$1" || wanted+=("$2")
}

python_can_build() {
    have_all python3 && python3 - <<'PYTHON'
import ensurepip, os, sys, sysconfig
assert sys.version_info >= (3, 11)
os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))
PYTHON
} 2>/dev/null

# What building nixsnap and running containers takes. A program that is there already, from wherever, is used as it is.
install_basics() {
    local wanted=()
    python_can_build || wanted+=(python3 python3-venv python3-dev)
    need gcc gcc
    [ -e /usr/include/stdlib.h ] || wanted+=(libc6-dev)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || wanted+=(ca-certificates)
    need setpriv util-linux
    need mount mount
    need runc runc
    need nix-store nix-bin
    install_packages "${wanted[@]}"
    python_can_build || die "python3 on PATH ($(command -v python3)) is older than 3.11 or lacks venv or Python.h"
}

# What only tests use: a static check of shell and C comes with pip, the sanitizers with gcc.
install_test_programs() {
    local wanted=()
    need git git
    need getfattr attr
    need ip iproute2
    need setfacl acl
    need newuidmap uidmap
    need rootlesskit rootlesskit
    need slirp4netns slirp4netns
    need fuse-overlayfs fuse-overlayfs
    need mount.fuse3 fuse3
    need mkfs.ext4 e2fsprogs
    need mkfs.btrfs btrfs-progs
    need skopeo skopeo
    need docker-registry docker-registry
    need openssl openssl
    need strace strace
    need systemd-analyze systemd
    # Units are run under it, the user's ones in a session with a bus of its own.
    [ -e /lib/systemd/system/dbus.socket ] || wanted+=(dbus)
    [ -e /lib/systemd/user/dbus.socket ] || wanted+=(dbus-user-session)
    [ -x /usr/lib/cni/ptp ] || wanted+=(containernetworking-plugins)
    install_packages "${wanted[@]}"
}

# The user that rootless containerd runs as in tests, made once and kept like the packages: no home, no password, no rights,
# but ranges of subordinate ids. Tests give it homes of their own (tests/system/lab/rootless.py).
make_test_user() {
    local user=nixsnap-test
    touch /etc/subuid /etc/subgid # useradd gives ranges only where these exist
    id "$user" >/dev/null 2>&1 ||
        useradd --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin --comment 'tests of nixsnap' "$user"
    if ! grep -q "^$user:" /etc/subuid || ! grep -q "^$user:" /etc/subgid; then
        die "useradd gave $user no ranges in /etc/subuid and /etc/subgid"
    fi
    # As udev has them; where there is none nobody else did it.
    chmod 0666 /dev/net/tun /dev/fuse
    # Virtual environments run the interpreter they were made from, and root may have its own below a closed home.
    let_pass "$user" "$(python3 -c 'import os, sys; print(os.path.realpath(sys.executable))')"
}

# let_pass USER PATH: let a user walk down to a path, through each directory above it that is closed to others.
let_pass() {
    local directory=$2
    while [ "$directory" != / ]; do
        directory=$(dirname "$directory")
        [[ $(stat --format %A "$directory") == *x ]] || setfacl --modify "user:$1:x" "$directory"
    done
}

# --- a private apt, which reads newer suites and installs nothing ---

# Signatures are checked as ever; a mirror that was frozen some weeks ago (sid's lists expire after one) will do.

private_apt() {
    local command=$1
    shift
    "$command" -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$LAB/apt/sources.d" \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State::Lists="$LAB/apt/lists" \
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root \
        -o Acquire::Check-Valid-Until=false "$@"
}

# The machine's own Debian source with other suites: the stanza (deb822) or line (one-line style) that names its release.
write_newer_sources() {
    local suites='bookworm trixie sid' release stanza line suite
    release=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    mkdir -p "$LAB/apt/sources.d" "$LAB/apt/lists/partial"
    shopt -s nullglob
    local deb822=(/etc/apt/sources.list.d/*.sources) one_line=(/etc/apt/sources.list /etc/apt/sources.list.d/*.list)
    shopt -u nullglob
    stanza=$(cat /dev/null "${deb822[@]}" | awk -v RS= -v release="$release" '
        $0 ~ "(^|\n)Types:[^\n]*deb" && $0 ~ "(^|\n)Suites:([^\n]*[ \t])?" release "([ \t\n]|$)" { print; exit }')
    if [ -n "$stanza" ]; then
        sed "s/^Suites:.*/Suites: $suites/; s/^Components:.*/Components: main/" <<<"$stanza" >"$LAB/apt/sources.d/newer.sources"
        return
    fi
    line=$(cat "${one_line[@]}" |
        sed -nE "s/^(deb( +\[[^]]*\])? +[^ ]+) +$release +.*/\1/p" | head -n 1)
    [ -n "$line" ] || die "found no source for $release in /etc/apt to derive newer suites from"
    for suite in $suites; do
        printf '%s %s main\n' "$line" "$suite"
    done >"$LAB/apt/sources.d/newer.list"
}

newer_suites_are_read=
read_newer_suites() {
    [ -z "$newer_suites_are_read" ] || return 0
    have_all apt-get dpkg-deb || die "this is no Debian; put containerd 1.6, 1.7 and 2.x below $LAB/containerd-*/usr/bin"
    say "reading the package lists of newer Debian suites (privately; /etc/apt stays as it is)"
    write_newer_sources
    private_apt apt-get update
    newer_suites_are_read=yes
}

# unpack NAME PROGRAM PACKAGE...: unpack packages into $LAB/NAME unless PROGRAM there already runs. PROGRAM is a path
# below it, then its arguments; PACKAGE may carry /suite.
unpack() {
    local name=$1 check=$2 scratch
    shift 2
    # shellcheck disable=SC2086 # the arguments of the check are words on purpose
    if "$LAB/$name"/$check >/dev/null 2>&1; then
        return 0
    fi
    read_newer_suites
    say "unpacking $* into $LAB/$name"
    scratch=$(mktemp -d "$LAB/unpack.XXXXXX")
    (cd "$scratch" && private_apt apt-get download "$@" >/dev/null)
    for package in "$scratch"/*.deb; do
        dpkg-deb --extract "$package" "$scratch/root"
    done
    # shellcheck disable=SC2086
    "$scratch/root"/$check >/dev/null || die "$name was unpacked, but does not run here"
    rm -rf "${LAB:?}/$name"
    mv "$scratch/root" "$LAB/$name"
    rm -r "$scratch"
}

# A statically linked busybox to build closures from.
install_busybox() {
    unpack busybox "bin/busybox true" busybox-static/bookworm
}

# The containerd that Debian 13 ships: what most nodes have today.
install_containerd() {
    unpack containerd-1.7 "usr/bin/containerd --version" containerd/trixie
}

# The other two release lines nixsnap promises to work with.
install_other_containerds() {
    unpack containerd-1.6 "usr/bin/containerd --version" containerd/bookworm
    unpack containerd-2 "usr/bin/containerd --version" containerd/sid
}

# What Debian 13 has: rootlesskit 2 knows --detach-netns, and people have either.
install_other_rootlesskit() {
    unpack rootlesskit-2 "usr/bin/rootlesskit --version" rootlesskit/trixie
}

# What Debian 13 has: a Nix that fetches in parallel. It brings the C library it needs, since it is never installed; tests
# start it through that library's own loader (tests/system/lab/nixes.py).
install_other_nix() {
    unpack nix-2.26 "usr/lib/*-linux-gnu/ld-linux-*.so.* --version" nix-bin/trixie \
        lib{acl1,archive13t64,boost-context1.83.0,brotli1,bsd0,bz2-1.0,c6,com-err2,cpuid17,curl3t64-gnutls,ffi8,gc1}/trixie \
        lib{gcc-s1,git2-1.9,gmp10,gnutls30t64,gssapi-krb5-2,hogweed6t64,http-parser2.9,idn2-0,k5crypto3,keyutils1}/trixie \
        lib{krb5-3,krb5support0,ldap2,lowdown2,lz4-1,lzma5,mbedcrypto16,mbedtls21,mbedx509-7,md0,nettle8t64,nghttp2-14}/trixie \
        lib{nghttp3-9,ngtcp2-16,ngtcp2-crypto-gnutls8,p11-kit0,pcre2-8-0,psl5t64,readline8t64,rtmp1,sasl2-2,seccomp2}/trixie \
        lib{sodium23,sqlite3-0,ssh2-1t64,ssl3t64,stdc++6,tasn1-6,tinfo6,unistring5,xml2,xxhash0,zstd1}/trixie zlib1g/trixie
}

# go_is_recent PROGRAM: whether it can build the conformance module as its go.mod asks.
go_is_recent() {
    local asked has
    asked=$(sed -nE 's/^go ([0-9.]+)$/\1/p' "$REPOSITORY/tests/conformance/go.mod")
    has=$("$1" env GOVERSION 2>/dev/null) || return 1
    has=${has#go}
    [ "$(printf '%s\n' "$asked" "${has%% *}" | sort --version-sort | head -n 1)" = "$asked" ]
}

# Sets NIXSNAP_GO to a go command: the machine's own if recent enough, else Debian's newest, unpacked.
find_go() {
    local candidate newest version
    for candidate in "${NIXSNAP_GO:-}" "$(command -v go || true)" /usr/local/go/bin/go "$LAB"/go/usr/lib/go-*/bin/go; do
        if [ -x "$candidate" ] && go_is_recent "$candidate"; then
            export NIXSNAP_GO=$candidate
            return
        fi
    done
    read_newer_suites
    newest=$(private_apt apt-cache search --names-only '^golang-1\.[0-9]+-go$' | cut -d ' ' -f 1 | sort --version-sort | tail -n 1)
    [ -n "$newest" ] || die "Debian's newer suites hold no Go"
    version=${newest#golang-} version=${version%-go}
    unpack go "usr/lib/go-$version/bin/go version" "$newest" "golang-$version-src"
    export NIXSNAP_GO=$LAB/go/usr/lib/go-$version/bin/go
    go_is_recent "$NIXSNAP_GO" || die "the newest Go in Debian, $version, is too old for tests/conformance/go.mod"
}

# build_go_tool NAME [CGO]: build the program in tests/tools/NAME, or those that its go.mod names as tools, into $LAB/NAME,
# with C code if CGO is 1. Needs find_go.
build_go_tool() {
    local name=$1 cgo=${2:-0} module=$REPOSITORY/tests/tools/$1 what=tool scratch made_of
    made_of=$(cat "$module"/* | sha256sum)
    if [ "$(cat "$LAB/$name/made-of" 2>/dev/null)" = "$made_of" ]; then
        chmod 0755 "$LAB/$name"
        return 0
    fi
    [ ! -e "$module/main.go" ] || what=.
    say "building $name (test-only)"
    scratch=$(mktemp -d "$LAB/build.XXXXXX")
    CGO_ENABLED=$cgo GOFLAGS='-mod=readonly -buildvcs=false' "$NIXSNAP_GO" -C "$module" build -trimpath -ldflags='-s -w' -o "$scratch/" "$what"
    printf '%s\n' "$made_of" >"$scratch/made-of"
    chmod 0755 "$scratch" # rootless tests use them too
    rm -rf "${LAB:?}/$name"
    mv "$scratch" "$LAB/$name"
}

# Other people's programs that load, pull, run and push images: Docker's engine and command line, nerdctl, kubelet's client
# of its image service, and the Go original.
install_other_clients() {
    unpack docker "usr/sbin/dockerd --version" docker.io/sid docker-cli/sid
    build_go_tool nerdctl
    build_go_tool kubelet
    build_go_tool original
    build_go_tool runc 1 # its nsexec is C
}

# --- nixsnap itself ---

# build_wheel DIRECTORY: build the checkout's wheel there, from a copy, so that nothing is written into the checkout.
build_wheel() {
    local copy
    copy=$(mktemp -d "$LAB/build.XXXXXX")
    tar -C "$REPOSITORY" --exclude-vcs --exclude=./build --exclude=./dist --exclude='./*.egg-info' --exclude=./nixsnap/api \
        --exclude=__pycache__ --exclude=./.venv -cf - . | tar -C "$copy" -xf -
    "$LAB/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$1" "$copy"
    rm -r "$copy"
}

# install_nixsnap [EXTRA]: build this checkout and install it with its requirements into the lab's own environment.
install_nixsnap() {
    local extra=${1:+[$1]} wheels wheel
    if ! "$LAB/venv/bin/python" -c 'import pip' 2>/dev/null; then
        say "making a Python environment in $LAB/venv"
        python3 -m venv --clear "$LAB/venv"
    fi
    say "building nixsnap and installing it with its requirements into $LAB/venv"
    wheels=$(mktemp -d "$LAB/wheel.XXXXXX")
    build_wheel "$wheels"
    wheel=$(printf '%s\n' "$wheels"/*.whl)
    [[ $wheel == *-cp311-abi3-*.whl ]] || die "one abi3 wheel was to be built, not: $wheel"
    "$LAB/venv/bin/pip" install --quiet "$wheel$extra"
    "$LAB/venv/bin/pip" install --quiet --no-deps --force-reinstall "$wheel"
    rm -r "$wheels"
}

prepare_lab() {
    umask 022
    mkdir -p "$LAB"
    exec {lab_lock}>"$LAB/lock"
    flock --nonblock "$lab_lock" || { say "waiting for another run to finish with $LAB"; flock "$lab_lock"; }
    # What a run that was interrupted left half made.
    rm -rf "$LAB"/unpack.* "$LAB"/build.* "$LAB"/wheel.*
}
