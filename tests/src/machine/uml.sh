# SPDX-License-Identifier: MIT OR Apache-2.0
#
# One power-on of a user-mode Linux machine: boots the disk, again at every reboot of the guest,
# until the guest powers off. Runs as the first program of a PID and a mount namespace, which
# take every process and mount of it with them.
#
#   tools          a root tree with user-mode Linux and debugfs, whose libraries the host lacks
#   dir            the machine's directory: disk.raw, and the agent's FIFOs in agent/
#   initramfs      with the kernel's modules
#   offset         where the disk's root partition starts, in bytes
#   tap            the machine's end of the network
#   console        the kernel's con0=
#   arguments      words to add to the kernel command line
set -euo pipefail
tools=$1 dir=$2 initramfs=$3 offset=$4 tap=$5 console=$6 arguments=$7

# The firmware's part: what is there before anything boots.
mount --rbind /dev "$tools/dev"
mount --rbind /proc "$tools/proc"
# The machine's memory is a file in /tmp.
mount -t tmpfs tmpfs "$tools/tmp"
mount --bind "$dir" "$tools/mnt"
touch "$tools/tmp/initramfs"
mount --bind "$initramfs" "$tools/tmp/initramfs"
# The kernel reboots by executing its own name again: this one ends it with a status of ours.
rebooted=133
printf '#!/bin/bash\nexit %s\n' "$rebooted" >"$tools/tmp/reboot"
chmod +x "$tools/tmp/reboot"

# Reads the disk as firmware does: what the journal has not written yet is not there, and
# checksums are nobody's concern (a block that was being written has the wrong one).
look() { chroot "$tools" debugfs -n -R "$1" "/mnt/disk.raw?offset=$offset" 2>"$tools/tmp/said"; }

# Whether the file that a boot entry names has content. Old libostree takes /boot for a file system
# of its own and names files from there.
loadable() {
    local path
    for path in "$1" "/boot$1"; do
        if [[ $(look "stat \"$path\"") =~ Size:\ [1-9] ]]; then return 0; fi
    done
    return 1
}

# The boot loader: of all entries, the options of the one with the highest version.
options() {
    local inode name key value version linux initrd words best=-1 chosen='' options='' files=()
    while IFS=/ read -r _ inode _ _ _ name _; do
        [[ $name == *.conf ]] || continue
        version=0 linux='' initrd='' words=''
        while read -r key value; do
            case $key in
                version) version=$value ;;
                linux) linux=$value ;;
                initrd) initrd=$value ;;
                options) words=$value ;;
            esac
        done < <(look "cat <$inode>")
        if ((version > best)); then
            best=$version chosen=$name options=$words files=("$linux" "$initrd")
        fi
    done < <(look 'ls -p /boot/loader/entries/')
    [[ -n $chosen ]] || { echo "no boot entry; debugfs: $(<"$tools/tmp/said")" >&2; return 1; }
    # They are not the kernel that runs here, but a machine that lacks them does not boot either.
    for name in "${files[@]}"; do
        loadable "$name" || { echo "$chosen: cannot load $name" >&2; return 1; }
    done
    echo "booting $chosen" >&2
    echo "$options"
}

# Everything is cheap to show here, and of use when something fails.
guest() {
    local word words more shown=()
    read -r -a words <<<"$1"
    read -r -a more <<<"$arguments"
    for word in "${words[@]}"; do
        [[ $word == console=* || $word == quiet ]] || shown+=("$word")
    done
    chroot "$tools" env -i PATH=/usr/sbin:/usr/bin HOME=/tmp TMPDIR=/tmp \
        bash -c 'exec 3<>/mnt/agent/in 4<>/mnt/agent/out; exec -a /tmp/reboot linux.uml "$@"' uml \
        mem=768M ubd0=/mnt/disk.raw initrd=/tmp/initramfs seccomp=auto panic=-1 \
        "vec0:transport=tap,ifname=$tap,depth=128,gro=1" \
        con=null "con0=$console" console=tty0 ssl=null ssl0=fd:3,fd:4 \
        "${shown[@]}" systemd.show_status=1 "${more[@]}"
}

status=$rebooted
while ((status == rebooted)); do
    chosen=$(options)
    status=0
    guest "$chosen" || status=$?
done
echo "the machine is off ($status)"
exit "$status"
