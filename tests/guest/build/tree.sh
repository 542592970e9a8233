#!/bin/sh
# Turns an installed Debian into the root of a bootable container image. Runs in a chroot of
# it, with /dev mounted and /run and /tmp empty; COMPOSEFS is yes or no.
set -eu

# A package of our own, so that the next version can bring a newer one.
mkdir -p /tmp/greeting/DEBIAN /tmp/greeting/usr/bin /tmp/greeting/usr/share/lab-greeting
cat >/tmp/greeting/DEBIAN/control <<'END'
Package: lab-greeting
Version: 1.0
Architecture: all
Maintainer: The lab <lab@example.org>
Description: Says hello
END
printf '#!/bin/sh\necho "Hello from 1.0"\n' >/tmp/greeting/usr/bin/lab-greeting
chmod 755 /tmp/greeting/usr/bin/lab-greeting
echo 'gone in 2.0' >/tmp/greeting/usr/share/lab-greeting/old
dpkg-deb --build --root-owner-group /tmp/greeting /tmp/greeting.deb >/dev/null
dpkg --log=/dev/null --install /tmp/greeting.deb >/dev/null

# Debian's default polkit rules take members of `sudo` for administrators. The passwords are
# the names.
useradd --no-create-home --uid 1000 --user-group --groups sudo --shell /bin/bash \
    --password '$6$labadmin$a9/dH27fngpsVruRzVq4p7jUIPnWVFSivn3AAO1lOsNDyMozArCZo59p0W7c3sI3t4Pf9dnxBnfcZgNW9EN65.' admin
useradd --no-create-home --uid 1001 --user-group --shell /bin/bash \
    --password '$6$labalice$wN5c4WYEOmO9.TTZuNUjgFi0E6EmCcznnjuoTWgfmMbwRxViVcTis3aJTg5dzzzZaADsUJcDvpuX9NyOlqj3j/' alice

# Trixie's and bookworm's kernels are in /boot only.
for modules in /usr/lib/modules/*; do
    [ -e "$modules/vmlinuz" ] || mv "/boot/vmlinuz-${modules##*/}" "$modules/vmlinuz"
done

# What the machine makes itself, and what only the building of packages needs.
rm -rf /initrd.img* /vmlinuz* /boot/* /etc/fstab /etc/mtab /etc/resolv.conf /etc/machine-id \
    /etc/apt/apt.conf.d/* /etc/*-
rm -f /usr/lib/systemd/system/apt-daily.timer /usr/lib/systemd/system/apt-daily-upgrade.timer \
    /usr/lib/systemd/system/dpkg-db-backup.timer /usr/lib/systemd/system/e2scrub_all.timer
find /etc/systemd/system -name '*.timer' -delete
: >/etc/machine-id
: >/etc/fstab
echo lab >/etc/hostname
echo '127.0.0.1 localhost lab' >/etc/hosts

# These only cost time on an emulated machine; the console has its own getty.
for unit in serial-getty@ttyS0.service dracut-shutdown.service \
    systemd-networkd-wait-online.service ldconfig.service systemd-hwdb-update.service \
    systemd-journal-catalog-update.service systemd-update-done.service \
    systemd-firstboot.service getty@tty1.service e2scrub_reap.service \
    systemd-pstore.service systemd-pcrphase.service dev-mqueue.mount dev-hugepages.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount \
    sys-kernel-config.mount proc-sys-fs-binfmt_misc.automount modprobe@drm.service \
    modprobe@efi_pstore.service modprobe@configfs.service \
    systemd-network-generator.service systemd-udev-load-credentials.service \
    kmod-static-nodes.service systemd-boot-random-seed.service systemd-binfmt.service \
    systemd-ask-password-console.path systemd-ask-password-wall.path; do
    ln -sf /dev/null "/etc/systemd/system/$unit"
done

mkdir -p /usr/lib/ostree
cat >/usr/lib/ostree/prepare-root.conf <<END
[composefs]
enabled=$COMPOSEFS
[sysroot]
readonly=true
END

mkdir -p /usr/lib/bootc/kargs.d
echo 'kargs=["lab.version=1"]' >/usr/lib/bootc/kargs.d/10-lab.toml

# The packages are part of the image, so their database is.
mkdir -p /usr/lib/sysimage
cp -a /var/lib/dpkg /usr/lib/sysimage/dpkg
rm -f /usr/lib/sysimage/dpkg/lock* /usr/lib/sysimage/dpkg/*-old /usr/lib/sysimage/dpkg/triggers/Lock

# What is the machine's own is in /var, which is empty in an image.
rm -rf /home /root /srv /opt /mnt /media /usr/local
find /var -mindepth 1 -delete
mkdir /sysroot
ln -s sysroot/ostree /ostree
for link in home:home root:roothome srv:srv opt:opt mnt:mnt media:media; do
    ln -s "var/${link#*:}" "/${link%:*}"
done
ln -s ../var/usrlocal /usr/local
