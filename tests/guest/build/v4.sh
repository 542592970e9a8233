# Small, like most updates.
echo 'kargs=["lab.version=4"]' >/usr/lib/bootc/kargs.d/10-lab.toml
echo 'from=4' >/etc/lab/changed.conf
echo 4 >/usr/lib/lab/version
