# SPDX-License-Identifier: MIT OR Apache-2.0
#
# One power-on of a container machine: boots the disk, again at every reboot of the guest, until
# the guest powers off. Runs in a PID and a mount namespace of its own, which take every process
# and mount with them.
#
#   disk offset       the raw disk, and where its root partition starts, in bytes
#   tree              a root tree with ostree-prepare-root: the initial file system
#   dir               the machine's directory; `agent` in it has the agent's FIFOs
#   name              the machine's
#   bridge address    the network it is to join, and as what
#   group             directory of the control group that is its own
#   console           nspawn's --console=
#   arguments         words to add to the kernel command line
set -euo pipefail
disk=$1 offset=$2 tree=$3 dir=$4 name=$5 bridge=$6 address=$7 group=$8 console=$9 arguments=${10}
stage=$dir/stage
mkdir -p "$stage" "$group"
# nspawn's own state and locks: nobody else's business, nor theirs ours.
mkdir -p /run/systemd
mount -t tmpfs -o mode=755 tmpfs /run/systemd

# The boot loader: of all entries, the one with the highest version.
entry() {
    local file version best=-1 chosen=
    for file in "$1"/loader/entries/*.conf; do
        version=$(sed -n 's/^version  *//p' "$file")
        if ((version > best)); then best=$version chosen=$file; fi
    done
    [[ -n $chosen ]] || { echo "no boot entry on the disk" >&2; return 1; }
    echo "$chosen"
}

# The kernel and the initial file system, up to the switch of roots.
prepare_root() {
    local chosen
    mount -t tmpfs -o mode=755 tmpfs "$stage"
    mkdir "$stage"/{proc,run,sysroot,usr}
    cp -P "$tree"/{bin,sbin,lib,lib64} "$stage"
    mount --bind "$tree/usr" "$stage/usr"
    mount -o remount,bind,ro "$stage/usr"
    mount -o "loop,offset=$offset" "$disk" "$stage/sysroot"
    # The kernel may still be writing for the last boot's mounts when the next one comes: then
    # the disk must be the same device.
    [[ -v device ]] || exec {device}<"$(findmnt --noheadings --output SOURCE "$stage/sysroot")"
    chosen=$(entry "$stage/sysroot/boot")
    echo "booting ${chosen##*/}"
    mount -t proc proc "$stage/proc"
    mount -t tmpfs -o mode=755 tmpfs "$stage/run"
    echo "$(sed -n 's/^options  *//p' "$chosen") $arguments" >"$stage/run/cmdline"
    mount --bind "$stage/run/cmdline" "$stage/proc/cmdline"
    chroot "$stage" /usr/lib/ostree/ostree-prepare-root /sysroot
}

# In the container, before its service manager: the /run that a switch of roots keeps, what the
# kernel shows as its command line, and the network device as udev would have named it.
first='set -e
cp -a /run/initramfs/. /run
umount /run/initramfs
mount --bind /run/cmdline /proc/cmdline
ip link set host0 name eth0
ip address add "$0" dev eth0
ip link set eth0 up
exec /sbin/init "$@"'

# From the switch of roots to the reboot.
guest() {
    local words
    read -r -a words <"$stage/run/cmdline"
    (
        echo "$BASHPID" >"$group/cgroup.procs" || exit
        exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet \
            --directory="$stage/sysroot" --machine="$name" --register=no --keep-unit \
            --kill-signal=SIGRTMIN+4 --link-journal=no --resolv-conf=off --timezone=off \
            --console="$console" --capability=all --network-bridge="$bridge" \
            --bind-ro="$stage/run:/run/initramfs" --bind="$dir/agent:/dev/osteward-agent" \
            /bin/sh -c "$first" "$address" "${words[@]}"
    )
}

# How nspawn says that the guest wants to be started again.
rebooted=133
status=$rebooted
while ((status == rebooted)); do
    prepare_root
    status=0
    guest || status=$?
    umount --recursive "$stage"
done
exit "$status"
