# Boots, but is not well: what decides on that fails.
cat >/usr/lib/systemd/system/lab-health.service <<'END'
[Unit]
Description=Health check that fails
Before=boot-complete.target

[Service]
Type=oneshot
ExecStart=/bin/false

[Install]
RequiredBy=boot-complete.target
END
mkdir -p /usr/lib/systemd/system/boot-complete.target.requires \
    /usr/lib/systemd/system/multi-user.target.wants
ln -s ../lab-health.service /usr/lib/systemd/system/boot-complete.target.requires/
# Nothing else on this machine wants the target.
ln -s ../boot-complete.target /usr/lib/systemd/system/multi-user.target.wants/
echo broken >/usr/lib/lab/version
