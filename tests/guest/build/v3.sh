# Small, like most updates.
echo 'kargs=["lab.version=3"]' >/usr/lib/bootc/kargs.d/10-lab.toml
echo 'from=3' >/etc/lab/changed.conf
echo 3 >/usr/lib/lab/version
