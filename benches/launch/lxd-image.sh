# Makes an LXD image of a root file system's tar and our init. Argument: the tar. Result: /run/lxd-image.tar.
mkdir -p /run/lxd-image/rootfs
tar -xf "$1" -C /run/lxd-image/rootfs
cp /usr/local/lib/enoki/init /run/lxd-image/rootfs/sbin/init
printf 'architecture: %s\ncreation_date: 1\nproperties: {description: tiny}\n' "$(uname -m)" >/run/lxd-image/metadata.yaml
tar -cf /run/lxd-image.tar -C /run/lxd-image metadata.yaml rootfs
rm -rf /run/lxd-image
