# Base images made of what the machine's distribution has; no registry is asked. Sourced by scripts that have a function or
# command `kiln`, not run.

# Makes an image of the distribution's static busybox with its applets as links: `make_busybox NAME`.
make_busybox() (
    rootfs=$(mktemp -d)
    trap 'rm -rf "$rootfs"' EXIT
    cd "$rootfs"
    mkdir -p bin dev etc home proc root sbin sys tmp usr/bin usr/sbin var
    chmod 755 .
    chmod 700 root
    chmod 1777 tmp
    cp "$(command -v busybox)" bin/busybox
    busybox --list-full | grep -vx bin/busybox | while read -r applet; do ln -s /bin/busybox "$applet"; done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n' > etc/passwd
    printf 'root:x:0:\nnogroup:x:65534:\n' > etc/group
    kiln build -q -t "$1" -f - "$rootfs" << 'EOF'
FROM scratch
COPY . /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["sh"]
EOF
)

# Makes an image of a minimal Debian or Ubuntu like this machine, with the same package source: `make_debian NAME`.
make_debian() (
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' "Created-By: Packages" |
        awk -v suite="$suite" '$2 == suite { print $1; exit }')
    [ -n "$mirror" ] || { echo "no package source of this machine has $suite (apt-get update)" >&2; exit 1; }
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$dir/root" "$mirror" > "$dir/log" 2>&1 || {
        tail "$dir/log" >&2
        exit 1
    }
    cd "$dir/root"
    rm -rf var/cache/apt/archives/*.deb var/lib/apt/lists/* dev proc sys
    mkdir dev proc sys
    tar --numeric-owner --xattrs --sort=name -cf - . |
        kiln import -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' -c 'CMD ["bash"]' - "$1"
)
