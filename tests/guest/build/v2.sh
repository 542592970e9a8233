# A real update: a newer package, another kernel argument, a changed and a removed file in
# /etc, a new user. All versions' scripts run in a chroot of the version below.
mkdir -p /tmp/greeting/DEBIAN /tmp/greeting/usr/bin /tmp/greeting/usr/share/lab-greeting
cat >/tmp/greeting/DEBIAN/control <<'END'
Package: lab-greeting
Version: 2.0
Architecture: all
Maintainer: The lab <lab@example.org>
Description: Says hello
END
printf '#!/bin/sh\necho "Hello from 2.0"\n' >/tmp/greeting/usr/bin/lab-greeting
chmod 755 /tmp/greeting/usr/bin/lab-greeting
echo 'new in 2.0' >/tmp/greeting/usr/share/lab-greeting/new
dpkg-deb --build --root-owner-group /tmp/greeting /tmp/greeting.deb >/dev/null
database=/usr/lib/sysimage/dpkg
dpkg --admindir=$database --log=/dev/null --install /tmp/greeting.deb >/dev/null
rm -f $database/lock* $database/*-old $database/triggers/Lock

echo 'kargs=["lab.version=2"]' >/usr/lib/bootc/kargs.d/10-lab.toml
echo 'from=2' >/etc/lab/changed.conf
echo 'from=2' >/etc/lab/added.conf
rm /etc/lab/removed.conf
echo 'u lab-user 700 "User of version 2"' >/usr/lib/sysusers.d/lab.conf
systemd-sysusers
rm -f /etc/*- /etc/.pwd.lock
echo 2 >/usr/lib/lab/version
