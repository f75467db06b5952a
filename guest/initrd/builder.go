package initrd

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds on an image. The kernel unpacks it into RAM, so a guest with a larger
// one would be better served by a disk.
const (
	maxEntries   = 500_000
	maxFileSize  = 1<<32 - 1 // eight hexadecimal digits in the header
	maxImageSize = 16 << 30
	maxPathLen   = 4095 // PATH_MAX without the NUL; the kernel skips longer ones
	maxLinks     = 40   // symbolic links followed in one path, as in Linux
)

// A Builder collects the files of an image. Paths in the guest are absolute
// and slash-separated; parents are made as needed, and where one of them is a
// symbolic link in the image it is followed. Adding a path again replaces what
// was there.
type Builder struct {
	// KeepTimes keeps the modification times of host files. Without it all
	// times are zero, and equal input gives equal images.
	KeepTimes bool

	// LibraryPath is searched for shared libraries as LD_LIBRARY_PATH is; New
	// takes it from the environment.
	LibraryPath string

	root  *node
	count int // nodes below root

	libs   map[hostID]string // shared libraries already in the image, by file
	search *librarySearch    // built by the first AddELF
}

// node is one file of the image.
type node struct {
	mode     uint32 // S_IFMT and permission bits
	mtime    int64
	children map[string]*node // of a directory
	target   string           // of a symbolic link
	data     []byte           // of a regular file made of bytes
	file     *hostFile        // of a regular file copied from the host
	rdev     [2]uint32        // of a device: major, minor
}

// hostFile is a file to be read when the image is.
type hostFile struct {
	path string
	size int64
	id   hostID
	hard bool // has other names on the host
}

// hostID tells whether two paths are one file.
type hostID struct{ dev, ino uint64 }

// New returns an empty Builder.
func New() *Builder {
	return &Builder{
		LibraryPath: os.Getenv("LD_LIBRARY_PATH"),
		root:        &node{mode: unix.S_IFDIR | 0o755, children: map[string]*node{}},
		libs:        map[hostID]string{},
	}
}

func (n *node) isDir() bool  { return n.mode&unix.S_IFMT == unix.S_IFDIR }
func (n *node) isLink() bool { return n.mode&unix.S_IFMT == unix.S_IFLNK }

// locate returns the directory and the name in it that guestPath stands for,
// following links in the parents and, with make, making missing ones. Without
// make a missing parent gives a nil directory.
func (b *Builder) locate(guestPath string, make bool) (dir *node, name string, err error) {
	if err := checkGuestPath(guestPath); err != nil {
		return nil, "", err
	}
	parts := split(guestPath)
	if len(parts) == 0 {
		return nil, "", nil // the root itself
	}
	stack := []*node{b.root}
	for links := 0; len(parts) > 1; {
		dir, name = stack[len(stack)-1], parts[0]
		parts = parts[1:]
		if name == ".." { // only in the target of a link
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		n := dir.children[name]
		switch {
		case n == nil && !make:
			return nil, "", nil
		case n == nil:
			n = newDir()
			if err := b.link(dir, name, n); err != nil {
				return nil, "", err
			}
		case n.isLink():
			if links++; links > maxLinks {
				return nil, "", fmt.Errorf("guest path %s: too many symbolic links", guestPath)
			}
			if path.IsAbs(n.target) {
				stack = stack[:1]
			}
			parts = append(split(n.target), parts...)
			continue
		case !n.isDir():
			return nil, "", fmt.Errorf("guest path %s: %s is not a directory", guestPath, name)
		}
		stack = append(stack, n)
	}
	return stack[len(stack)-1], parts[0], nil
}

// split returns the names in a path, ".." among them, without empty ones and
// dots.
func split(p string) []string {
	return slices.DeleteFunc(strings.Split(p, "/"), func(s string) bool { return s == "" || s == "." })
}

func checkGuestPath(p string) error {
	switch {
	case !path.IsAbs(p):
		return fmt.Errorf("guest path %q is not absolute", p)
	case len(p) > maxPathLen || strings.ContainsRune(p, 0):
		return fmt.Errorf("guest path %.80q is too long or has a NUL in it", p)
	case slices.Contains(split(p), ".."):
		return fmt.Errorf("guest path %s goes through a parent directory", p)
	}
	return nil
}

func newDir() *node { return &node{mode: unix.S_IFDIR | 0o755, children: map[string]*node{}} }

// link puts n under name in dir.
func (b *Builder) link(dir *node, name string, n *node) error {
	if dir.children[name] == nil {
		if b.count == maxEntries {
			return fmt.Errorf("over %d files in the image", maxEntries)
		}
		b.count++
	}
	dir.children[name] = n
	return nil
}

// put adds n at guestPath.
func (b *Builder) put(guestPath string, n *node) error {
	dir, name, err := b.locate(guestPath, true)
	if err != nil {
		return err
	}
	if dir == nil {
		if !n.isDir() {
			return errors.New("guest path / is a directory")
		}
		b.root.mode = n.mode
		return nil
	}
	if old := dir.children[name]; old != nil && old.isDir() {
		if n.isDir() { // new attributes, same children
			old.mode, old.mtime = n.mode, n.mtime
			return nil
		}
		if len(old.children) > 0 {
			return fmt.Errorf("guest path %s is a directory with files in it", guestPath)
		}
	}
	return b.link(dir, name, n)
}

// at returns what is at guestPath, not following a last link, or nil.
func (b *Builder) at(guestPath string) *node {
	dir, name, err := b.locate(guestPath, false)
	if err != nil || dir == nil {
		if err == nil && len(split(guestPath)) == 0 {
			return b.root
		}
		return nil
	}
	return dir.children[name]
}

// Has reports whether the image has something at guestPath.
func (b *Builder) Has(guestPath string) bool { return b.at(guestPath) != nil }

// AddDir adds a directory with the given permissions. One that is there
// already keeps its files.
func (b *Builder) AddDir(guestPath string, perm fs.FileMode) error {
	n := newDir()
	n.mode = unix.S_IFDIR | permBits(perm)
	return b.put(guestPath, n)
}

// AddBytes adds a regular file with this content. The Builder keeps data.
func (b *Builder) AddBytes(data []byte, guestPath string, perm fs.FileMode) error {
	if int64(len(data)) > maxFileSize {
		return fmt.Errorf("guest file %s: over 4 GiB", guestPath)
	}
	return b.put(guestPath, &node{mode: unix.S_IFREG | permBits(perm), data: data})
}

// AddSymlink adds a symbolic link at guestPath.
func (b *Builder) AddSymlink(target, guestPath string) error {
	if target == "" || len(target) > maxPathLen || strings.ContainsRune(target, 0) {
		return fmt.Errorf("guest link %s: bad target %.80q", guestPath, target)
	}
	return b.put(guestPath, &node{mode: unix.S_IFLNK | 0o777, target: target})
}

// AddDevice adds a character or block device node, or a FIFO; the type comes
// from mode.
func (b *Builder) AddDevice(guestPath string, mode fs.FileMode, major, minor uint32) error {
	n := &node{mode: permBits(mode), rdev: [2]uint32{major, minor}}
	switch {
	case mode&fs.ModeCharDevice != 0:
		n.mode |= unix.S_IFCHR
	case mode&fs.ModeDevice != 0:
		n.mode |= unix.S_IFBLK
	case mode&fs.ModeNamedPipe != 0:
		n.mode |= unix.S_IFIFO
		n.rdev = [2]uint32{}
	default:
		return fmt.Errorf("guest device %s: mode %v is not that of a device", guestPath, mode)
	}
	return b.put(guestPath, n)
}

// AddFile adds a regular file of the host with its permissions. If hostPath is
// a symbolic link, its target's content appears at guestPath.
func (b *Builder) AddFile(hostPath, guestPath string) error {
	n, err := b.fromHost(hostPath)
	if err != nil {
		return err
	}
	return b.put(guestPath, n)
}

// fromHost makes a node of the regular file at hostPath. It opens the file:
// one that cannot be read is reported now, not when the guest starts.
func (b *Builder) fromHost(hostPath string) (*node, error) {
	// A FIFO or a device must not be opened: that could block or act.
	st, err := os.Stat(hostPath)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", hostPath)
	}
	f, err := os.Open(hostPath)
	if err != nil {
		return nil, err
	}
	st, err = f.Stat()
	f.Close()
	if err != nil {
		return nil, err
	}
	if st.Size() > maxFileSize {
		return nil, fmt.Errorf("%s: over 4 GiB: pass it as a disk", hostPath)
	}
	n := &node{
		mode:  unix.S_IFREG | permBits(st.Mode()),
		mtime: b.mtime(st),
		file:  &hostFile{path: hostPath, size: st.Size()},
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		n.file.id = hostID{uint64(sys.Dev), sys.Ino}
		n.file.hard = sys.Nlink > 1
	}
	return n, nil
}

// mtime returns the time to record for a host file: seconds in 32 bits.
func (b *Builder) mtime(st fs.FileInfo) int64 {
	if !b.KeepTimes {
		return 0
	}
	return min(max(st.ModTime().Unix(), 0), 1<<32-1)
}

// permBits turns Go's permission bits into those of stat(2).
func permBits(m fs.FileMode) uint32 {
	p := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		p |= unix.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		p |= unix.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		p |= unix.S_ISVTX
	}
	return p
}

// Entry describes a file of the image, for listings.
type Entry struct {
	Path   string
	Mode   uint32 // as stat(2) has it
	Size   int64
	Target string // of a symbolic link
	Host   string // the host file it is copied from
	MTime  time.Time
}

// Entries lists the image in the order of the archive.
func (b *Builder) Entries() []Entry {
	var list []Entry
	b.walk(func(p string, n *node) error {
		e := Entry{Path: "/" + p, Mode: n.mode, Size: n.size(), Target: n.target, MTime: time.Unix(n.mtime, 0).UTC()}
		if n.file != nil {
			e.Host = n.file.path
		}
		list = append(list, e)
		return nil
	})
	return list
}

// size returns the length of the node's body in the archive.
func (n *node) size() int64 {
	switch {
	case n.file != nil:
		return n.file.size
	case n.isLink():
		return int64(len(n.target))
	}
	return int64(len(n.data))
}

// walk calls f for all nodes, parents before children, by name.
func (b *Builder) walk(f func(p string, n *node) error) error {
	var rec func(prefix string, dir *node) error
	rec = func(prefix string, dir *node) error {
		for _, name := range slices.Sorted(maps.Keys(dir.children)) {
			n := dir.children[name]
			if err := f(prefix+name, n); err != nil {
				return err
			}
			if n.isDir() {
				if err := rec(prefix+name+"/", n); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return rec("", b.root)
}
