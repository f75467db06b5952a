package userland

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func stat(c *ctx) int {
	if !c.getopt("c:fLp:", "format=c", "file-system=f", "dereference=L", "printf=p") {
		return 1
	}
	if len(c.args) == 0 {
		return c.fail(1, "missing operand")
	}
	format := c.opt('c', "")
	for _, p := range c.args {
		if c.has('f') {
			c.statFS(p, format)
			continue
		}
		var st statT
		var err error
		if c.has('L') {
			err = syscall.Stat(p, &st)
		} else {
			err = syscall.Lstat(p, &st)
		}
		if err != nil {
			c.warn("cannot statx '%s': %s", p, reason(err))
			continue
		}
		switch {
		case c.has('p'):
			c.out.WriteString(unescape(statFormat(c.opt('p', ""), p, &st)))
			continue
		case format != "":
			fmt.Fprintln(c.out, statFormat(format, p, &st))
			continue
		}
		c.statLong(p, &st)
	}
	return c.code()
}

func fileType(st *statT) string {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if st.Size == 0 {
			return "regular empty file"
		}
		return "regular file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFCHR:
		return "character special file"
	case unix.S_IFBLK:
		return "block special file"
	case unix.S_IFIFO:
		return "fifo"
	}
	return "socket"
}

func stamp(ts syscall.Timespec) string {
	return time.Unix(ts.Sec, ts.Nsec).Format("2006-01-02 15:04:05.000000000 -0700")
}

// statFormat expands stat -c.
func statFormat(format, p string, st *statT) string {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		switch format[i] {
		case 'n':
			b.WriteString(p)
		case 'N':
			b.WriteString("'" + p + "'")
			if to, err := os.Readlink(p); err == nil {
				b.WriteString(" -> '" + to + "'")
			}
		case 's':
			fmt.Fprint(&b, st.Size)
		case 'a':
			fmt.Fprintf(&b, "%o", st.Mode&0o7777)
		case 'A':
			b.WriteString(modeString(st.Mode))
		case 'f':
			fmt.Fprintf(&b, "%x", st.Mode)
		case 'F':
			b.WriteString(fileType(st))
		case 'u':
			fmt.Fprint(&b, st.Uid)
		case 'U':
			b.WriteString(nameOf("/etc/passwd", st.Uid))
		case 'g':
			fmt.Fprint(&b, st.Gid)
		case 'G':
			b.WriteString(nameOf("/etc/group", st.Gid))
		case 'i':
			fmt.Fprint(&b, st.Ino)
		case 'h':
			fmt.Fprint(&b, st.Nlink)
		case 'd':
			fmt.Fprint(&b, st.Dev)
		case 'D':
			fmt.Fprintf(&b, "%x", st.Dev)
		case 't':
			fmt.Fprintf(&b, "%x", unix.Major(st.Rdev))
		case 'T':
			fmt.Fprintf(&b, "%x", unix.Minor(st.Rdev))
		case 'b':
			fmt.Fprint(&b, st.Blocks)
		case 'B':
			b.WriteString("512")
		case 'o':
			fmt.Fprint(&b, st.Blksize)
		case 'X':
			fmt.Fprint(&b, st.Atim.Sec)
		case 'Y':
			fmt.Fprint(&b, st.Mtim.Sec)
		case 'Z':
			fmt.Fprint(&b, st.Ctim.Sec)
		case 'x':
			b.WriteString(stamp(st.Atim))
		case 'y':
			b.WriteString(stamp(st.Mtim))
		case 'z':
			b.WriteString(stamp(st.Ctim))
		case '%':
			b.WriteByte('%')
		default:
			b.WriteString("?")
		}
	}
	return b.String()
}

// unescape expands backslash escapes.
func unescape(s string) string {
	return strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\0`, "\x00", `\\`, `\`).Replace(s)
}

func (c *ctx) statLong(p string, st *statT) {
	name := p
	if to, err := os.Readlink(p); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		name += " -> " + to
	}
	fmt.Fprintf(c.out, "  File: %s\n  Size: %-10d\tBlocks: %-10d IO Block: %-6d %s\n", name, st.Size, st.Blocks, st.Blksize, fileType(st))
	fmt.Fprintf(c.out, "Device: %d,%d\tInode: %-11d Links: %d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino, st.Nlink)
	if k := st.Mode & unix.S_IFMT; k == unix.S_IFCHR || k == unix.S_IFBLK {
		fmt.Fprintf(c.out, "     Device type: %d,%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	fmt.Fprintf(c.out, "\nAccess: (%04o/%s)  Uid: (%5d/%8s)   Gid: (%5d/%8s)\n", st.Mode&0o7777, modeString(st.Mode),
		st.Uid, nameOf("/etc/passwd", st.Uid), st.Gid, nameOf("/etc/group", st.Gid))
	fmt.Fprintf(c.out, "Access: %s\nModify: %s\nChange: %s\n", stamp(st.Atim), stamp(st.Mtim), stamp(st.Ctim))
}

func (c *ctx) statFS(p, format string) {
	var st unix.Statfs_t
	if err := unix.Statfs(p, &st); err != nil {
		c.warn("cannot read file system information for '%s': %s", p, reason(err))
		return
	}
	if format == "" {
		format = "  File: \"%n\"\nType: %t\nBlock size: %s\nBlocks: Total: %b Free: %f Available: %a\nInodes: Total: %c Free: %d"
	}
	r := strings.NewReplacer("%n", p, "%t", fmt.Sprintf("%x", st.Type), "%s", fmt.Sprint(st.Bsize), "%S", fmt.Sprint(st.Frsize),
		"%b", fmt.Sprint(st.Blocks), "%f", fmt.Sprint(st.Bfree), "%a", fmt.Sprint(st.Bavail), "%c", fmt.Sprint(st.Files),
		"%d", fmt.Sprint(st.Ffree), "%l", fmt.Sprint(st.Namelen), "%T", fsName(uint64(st.Type)))
	fmt.Fprintln(c.out, r.Replace(format))
}

// fsName returns the name of a file system's magic number, statfs(2).
func fsName(t uint64) string {
	names := map[uint64]string{
		unix.EXT4_SUPER_MAGIC: "ext2/ext3", unix.TMPFS_MAGIC: "tmpfs", unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs",
		unix.RAMFS_MAGIC: "ramfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.SQUASHFS_MAGIC: "squashfs", unix.V9FS_MAGIC: "v9fs",
		unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.CGROUP2_SUPER_MAGIC: "cgroup2fs", unix.DEVPTS_SUPER_MAGIC: "devpts",
	}
	if n, ok := names[t]; ok {
		return n
	}
	return fmt.Sprintf("UNKNOWN (%#x)", t)
}
