#!/bin/sh
# PID 1 of a machine until systemd takes its place: makes the root file system, /dev, /proc and /sys, then execs.
#
# usage: init.sh DIRECTORY CGROUP in fresh mount, PID, UTS, IPC and time namespaces; descriptor 3 receives `pid N`.
# The machine's disk is an overlay: the host's root file system below, DIRECTORY/upper above, which keeps what the
# machine writes across its reboots.
set -eu
directory=$1 cgroup=$2 phase=${3:-enter}
disk=$directory/root
systemd=/usr/lib/systemd/systemd
[ -x "$systemd" ] || systemd=/lib/systemd/systemd

if [ "$phase" = enter ]; then
    # /proc is still the host's: this is our number outside.
    read -r pid _ </proc/self/stat
    # The supervisor stays outside the cgroup: a process in the machine's root cgroup that systemd cannot see would keep
    # it from enabling controllers.
    echo 0 >"$cgroup/cgroup.procs"
    echo "pid $pid" >&3
    exec 3>&-
    exec unshare --cgroup sh "$0" "$directory" "$cgroup" mounted
fi

# Gives the disk a name, an identity and a quiet set of services, once.
install_disk() {
    cd "$disk"
    # A copy of the agent that the host runs must not start with the host's identity.
    rm -rf etc/bamf etc/systemd/system/bamf-* usr/local/bin/bamf-agent usr/local/bin/.bamf-agent.* \
        var/lib/bamf-agent* usr/lib/systemd/system/bamf-* var/log/journal
    # Persistent journal: what happened before a reboot can be read after it.
    mkdir -p var/log/journal
    tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
    rm -f etc/hostname etc/hosts
    name=$(cat "$directory/name")
    echo "$name" >etc/hostname
    printf '127.0.0.1 localhost %s\n::1 localhost\n' "$name" >etc/hosts
    # An allow list, because what a host's image enables (databases, package timers, modules, cloud-init) differs from
    # host to host: nothing that the administrator enabled, no generated units, and of the vendor's units these.
    rm -rf etc/systemd/system/*.wants etc/systemd/system/*.requires
    mkdir -p etc/systemd/system-generators
    for generator in usr/lib/systemd/system-generators/* etc/systemd/system-generators/*; do
        ln -sf /dev/null "etc/systemd/system-generators/${generator##*/}"
    done
    for wanted in usr/lib/systemd/system/*.wants/*; do
        case ${wanted##*/} in
            dbus* | systemd-journal* | systemd-sysusers* | systemd-tmpfiles-setup.service | systemd-user-sessions*) ;;
            *) rm -f "$wanted" ;;
        esac
    done
    mkdir -p etc/systemd/system/sockets.target.wants
    ln -sf /usr/lib/systemd/system/dbus.socket etc/systemd/system/sockets.target.wants/dbus.socket
    # Started by D-Bus or by other units rather than wanted: no seats, no clock, no network to configure.
    while read -r unit; do
        ln -sf /dev/null "etc/systemd/system/$unit"
    done <"$directory/masks"
    : >"$directory/installed"
}

mkdir -p "$disk"
mount -t overlay overlay -o "lowerdir=/,upperdir=$directory/upper,workdir=$directory/work" "$disk"
[ -e "$directory/installed" ] || install_disk
cd "$disk"
# The host's /var/tmp holds this directory itself.
mount --bind "$directory/var-tmp" var/tmp
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs run
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs tmp

mount -t proc -o nosuid,nodev,noexec proc proc
# Kernel settings are the host's, except the network's, which belong to the namespace; systemd sets one of those
# (net.unix.max_dgram_qlen), and the descriptor store feels it.
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
[ ! -e proc/sysrq-trigger ] || mount --bind -o ro proc/sysrq-trigger proc/sysrq-trigger
# The kernel has one boot id; a machine that reboots needs a new one.
cat proc/sys/kernel/random/uuid >run/boot-id
mount --bind run/boot-id proc/sys/kernel/random/boot_id
umask 022

mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup

mount -t tmpfs -o mode=0755,nosuid tmpfs dev
for node in null zero full random urandom tty; do
    : >"dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
: >dev/console
mount --bind "$directory/console.log" dev/console

# pivot_root rather than chroot: in a chroot the kernel refuses new user namespaces (PrivateUsers=), and the host's
# mounts would stay reachable.
mkdir -p .host
pivot_root . .host
cd /
umount -l /.host
rmdir /.host
# What systemd itself does on hardware and nspawn does for containers: mounts made later reach running services.
mount --make-rshared /

# Without these capabilities nothing that systemd starts can change the host's clock or load a module.
exec env -i container=unshare PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
    setpriv --bounding-set=-sys_time,-sys_module \
    "$systemd" --system --unit=multi-user.target --log-target=journal --show-status=no \
    </dev/null >/dev/console 2>&1
