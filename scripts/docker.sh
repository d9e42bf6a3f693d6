# Docker's command with buildx and compose, for tests that drive Kiln with them. Sourced by scripts/test after machine.sh, not run.
#
# The packages are unpacked and not installed: nothing of the machine changes, and no daemon is started. They come from
# the machine's own package sources or, where those have no buildx (Debian 12), from the next release on the same mirror.

# Makes DIR/docker and DIR/cli-plugins/docker-{buildx,compose}, unless they are there and work: `fetch_docker DIR`. Returns 1, and
# says why, when they cannot be had.
fetch_docker() {
    local dir=$1 log
    docker_works "$dir" && return
    say "fetching docker, buildx and compose"
    rm -rf "$dir" "$dir.part"
    mkdir -p "$dir.part"
    log=$dir.part/log
    if ! unpack_docker "$dir.part" > "$log" 2>&1; then
        tail -n 5 "$log" >&2
        printf '%s: SKIPPING the tests with docker and buildx: their packages cannot be had (see above)\n' "$0" >&2
        return 1
    fi
    rm -rf "$dir.part"/{apt,root,log}
    mv "$dir.part" "$dir"
    docker_works "$dir" && return
    printf '%s: SKIPPING the tests with docker and buildx: these do not run here: %s\n' "$0" "$dir" >&2
    return 1
}

docker_works() {
    "$1/docker" --version > /dev/null 2>&1 && "$1/cli-plugins/docker-buildx" docker-cli-plugin-metadata > /dev/null 2>&1 &&
        "$1/cli-plugins/docker-compose" docker-cli-plugin-metadata > /dev/null 2>&1
}

unpack_docker() (
    set -euo pipefail
    cd "$1"
    mkdir -p apt/{state/lists/partial,cache/archives/partial} root cli-plugins
    : > apt/status
    apt=(env DEBIAN_FRONTEND=noninteractive)
    packages=$(docker_packages)
    options=(-o APT::Sandbox::User=root)
    if [ -z "$packages" ]; then
        next_release > apt/sources.list
        options+=(
            -o "Dir::Etc::SourceList=$PWD/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State=$PWD/apt/state"
            -o "Dir::State::Status=$PWD/apt/status" -o "Dir::Cache=$PWD/apt/cache" -o Acquire::Languages=none
            -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        )
        "${apt[@]}" apt-get -qq "${options[@]}" update
        packages=$(docker_packages "${options[@]}")
    fi
    [ -n "$packages" ] || { echo "no package source has docker-buildx and docker-compose"; exit 1; }
    # shellcheck disable=SC2086
    (cd apt && "${apt[@]}" apt-get -qq "${options[@]}" download $packages)
    for package in apt/*.deb; do dpkg-deb -x "$package" root; done
    cp root/usr/bin/docker docker
    for plugin in docker-buildx docker-compose; do
        cp "$(find root -type f -name $plugin -perm -1 | head -n 1)" cli-plugins/
    done
)

# Prints the packages that have docker's command, buildx and compose, if all are to be had: `docker_packages [APT-OPTION...]`.
docker_packages() {
    local known chosen=() names name
    known=$(apt-cache "$@" pkgnames docker)
    for names in "docker-cli docker.io" docker-buildx "docker-compose-v2 docker-compose"; do
        for name in $names; do
            grep -qx "$name" <<< "$known" || continue
            # Before version 2 compose was a program of its own.
            [[ $name != docker-compose || $(apt-cache "$@" show "$name" | grep -m 1 ^Version:) != *" 1."* ]] || continue
            chosen+=("$name")
            continue 2
        done
        return 0
    done
    printf '%s\n' "${chosen[*]}"
}

# Prints a package source: the release after this machine's, on the mirror of this machine.
next_release() {
    local suite next mirror keys
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    case $suite in
        bookworm) next=trixie ;;
        *) echo "the release after $suite is not known" >&2; return 1 ;;
    esac
    mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' "Created-By: Packages" |
        awk -v suite="$suite" '$2 == suite { print $1; exit }')
    [ -n "$mirror" ] || { echo "no package source of this machine has $suite (apt-get update)" >&2; return 1; }
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -e $keys ] && keys="[signed-by=$keys] " || keys=
    printf 'deb %s%s %s main\n' "$keys" "$mirror" "$next"
}
