package initrd

import (
	"fmt"
	"io/fs"
)

// The minimal files of /etc. The agent writes what depends on the machine.
var etc = map[string]string{
	"passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
	"group":         "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
	"hosts":         "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\thvpost\n",
	"hostname":      "hvpost\n",
	"resolv.conf":   "",
	"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	"shells":        "/bin/sh\n",
}

// Base adds the layout that a guest starts from: selfExe as /init with what it
// needs to run, a link to it in /bin for each applet, the directories that
// programs expect, a few files in /etc, and the devices that exist before
// devtmpfs is mounted: the kernel opens /dev/console for /init by itself.
func Base(b *Builder, selfExe string, applets []string) error {
	for _, d := range []struct {
		path string
		perm fs.FileMode
	}{
		{"/", 0o755}, {"/bin", 0o755}, {"/sbin", 0o755}, {"/lib", 0o755}, {"/lib64", 0o755},
		{"/usr/bin", 0o755}, {"/usr/sbin", 0o755}, {"/usr/lib", 0o755},
		{"/dev", 0o755}, {"/proc", 0o555}, {"/sys", 0o555}, {"/run", 0o755},
		{"/tmp", 0o777 | fs.ModeSticky}, {"/root", 0o700}, {"/etc", 0o755}, {"/mnt", 0o755},
		{"/var/log", 0o755}, {"/var/tmp", 0o777 | fs.ModeSticky},
	} {
		if err := b.AddDir(d.path, d.perm); err != nil {
			return err
		}
	}
	for name, text := range etc {
		if err := b.AddBytes([]byte(text), "/etc/"+name, 0o644); err != nil {
			return err
		}
	}
	for _, l := range [][2]string{{"/proc/self/mounts", "/etc/mtab"}, {"/run", "/var/run"}} {
		if err := b.AddSymlink(l[0], l[1]); err != nil {
			return err
		}
	}
	for _, d := range []struct {
		name         string
		perm         fs.FileMode
		major, minor uint32 // Documentation/admin-guide/devices.txt
	}{
		{"console", 0o600, 5, 1}, {"null", 0o666, 1, 3}, {"kmsg", 0o644, 1, 11},
	} {
		if err := b.AddDevice("/dev/"+d.name, d.perm|fs.ModeDevice|fs.ModeCharDevice, d.major, d.minor); err != nil {
			return err
		}
	}
	if err := b.AddELF(selfExe, "/init"); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	if n := b.at("/init"); n != nil {
		n.mode |= 0o555 // whatever the build directory's umask was
	}
	for _, name := range applets {
		if err := b.AddSymlink("/init", "/bin/"+name); err != nil {
			return err
		}
	}
	return nil
}
