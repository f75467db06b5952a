package userland

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

func tarCmd(c *ctx) int {
	// "tar xzf file" is the old way to say "tar -xzf file".
	if len(c.args) > 0 && c.args[0] != "" && c.args[0][0] != '-' {
		c.args[0] = "-" + c.args[0]
	}
	if !c.getopt("ctxf:C:zJjvpmOPaS:", "create=c", "list=t", "extract=x", "get=x", "file=f", "directory=C", "gzip=z", "xz=J", "verbose=v",
		"to-stdout=O", "strip-components=S", "numeric-owner=p", "no-same-owner=m", "same-owner=p") {
		return 2
	}
	if c.has('j') {
		return c.fail(2, "bzip2 is not supported")
	}
	archive := c.opt('f', "-")
	if archive != "-" {
		if a, err := filepath.Abs(archive); err == nil {
			archive = a
		}
	}
	dir := c.opt('C', "")
	var err error
	switch {
	case c.has('c'):
		if len(c.args) == 0 {
			return c.fail(2, "cowardly refusing to create an empty archive")
		}
		err = c.tarCreate(archive, dir)
	case c.has('x'), c.has('t'):
		err = c.tarRead(archive, dir)
	default:
		return c.fail(2, "needs one of -c, -t, -x")
	}
	if err != nil {
		return c.fail(2, "%s", reason(err))
	}
	if c.failed {
		return 2
	}
	return 0
}

func (c *ctx) tarCreate(archive, dir string) (err error) {
	var w io.Writer = c.out
	if archive != "-" {
		f, err := os.Create(archive)
		if err != nil {
			return err
		}
		defer func() {
			if cerr := f.Close(); err == nil {
				err = cerr
			}
		}()
		w = f
	}
	if dir != "" {
		if err := os.Chdir(dir); err != nil {
			return err
		}
	}
	switch {
	case c.has('J'):
		z, err := xz.NewWriter(w)
		if err != nil {
			return err
		}
		defer z.Close()
		w = z
	case c.has('z'), c.has('a') && strings.HasSuffix(archive, "gz"):
		z := gzip.NewWriter(w)
		defer z.Close()
		w = z
	}
	t := tar.NewWriter(w)
	defer t.Close()
	links := map[[2]uint64]string{}
	for _, root := range c.args {
		filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil {
				err = c.tarAdd(t, p, d, links)
			}
			if err != nil {
				c.warn("%s: %s", p, reason(err))
			}
			return nil
		})
	}
	return nil
}

func (c *ctx) tarAdd(t *tar.Writer, p string, d fs.DirEntry, links map[[2]uint64]string) error {
	st, err := d.Info()
	if err != nil {
		return err
	}
	to := ""
	if st.Mode()&fs.ModeSymlink != 0 {
		if to, err = os.Readlink(p); err != nil {
			return err
		}
	}
	if st.Mode()&fs.ModeSocket != 0 {
		return nil // there is no such entry in an archive
	}
	h, err := tar.FileInfoHeader(st, to)
	if err != nil {
		return err
	}
	name := strings.TrimLeft(p, "/")
	if c.has('P') {
		name = p
	}
	if h.Name = name; st.IsDir() {
		h.Name = strings.TrimSuffix(name, "/") + "/"
	}
	if h.Name == "/" {
		return nil
	}
	sys := st.Sys().(*statT)
	if id := [2]uint64{uint64(sys.Dev), sys.Ino}; st.Mode().IsRegular() && sys.Nlink > 1 {
		if first, ok := links[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			links[id] = h.Name
		}
	}
	if c.has('v') {
		if c.opt('f', "-") == "-" {
			fmt.Fprintln(c.err, h.Name)
		} else {
			fmt.Fprintln(c.out, h.Name)
		}
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(t, f, h.Size)
	return err
}

func (c *ctx) tarRead(archive, dir string) error {
	r, err := c.open(archive)
	if err != nil {
		return err
	}
	defer r.Close()
	u, err := unpacked(r)
	if err != nil {
		return err
	}
	if dir == "" {
		dir = "."
	}
	// Everything happens below the directory, whatever names and links the
	// archive has.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	strip, _ := strconv.Atoi(c.opt('S', "0"))
	want := map[string]bool{}
	for _, a := range c.args {
		want[strings.TrimSuffix(a, "/")] = true
	}
	type dirTime struct {
		name string
		h    *tar.Header
	}
	var dirs []dirTime
	t := tar.NewReader(u)
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if len(want) > 0 && !wanted(want, h.Name) {
			continue
		}
		if c.has('t') {
			c.tarList(h)
			continue
		}
		name := filepath.Clean(strings.TrimLeft(h.Name, "/"))
		parts := strings.Split(name, "/")
		if len(parts) <= strip {
			continue
		}
		name = strings.Join(parts[strip:], "/")
		if c.has('v') {
			fmt.Fprintln(c.out, h.Name)
		}
		if c.has('O') {
			if h.Typeflag == tar.TypeReg {
				if _, err := io.Copy(c.out, t); err != nil {
					return err
				}
			}
			continue
		}
		if name == "." {
			continue
		}
		if err := c.tarExtract(root, name, h, t); err != nil {
			c.warn("%s: %s", h.Name, reason(err))
		} else if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, dirTime{name, h})
		}
	}
	// Times of directories come last, as what was made in them changed them.
	for i := len(dirs) - 1; i >= 0; i-- {
		root.Chmod(dirs[i].name, fs.FileMode(dirs[i].h.Mode).Perm())
		root.Chtimes(dirs[i].name, dirs[i].h.ModTime, dirs[i].h.ModTime)
	}
	return nil
}

func wanted(want map[string]bool, name string) bool {
	for name = strings.TrimSuffix(name, "/"); ; {
		if want[name] {
			return true
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return false
		}
		name = name[:i]
	}
}

func (c *ctx) tarExtract(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	if d := filepath.Dir(name); d != "." {
		if err := root.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	perm := fs.FileMode(h.Mode).Perm()
	if h.Typeflag != tar.TypeDir {
		root.Remove(name)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, perm|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(filepath.Clean(strings.TrimLeft(h.Linkname, "/")), name)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		kind := map[byte]uint32{tar.TypeFifo: unix.S_IFIFO, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
		parent, err := root.Open(filepath.Dir(name))
		if err != nil {
			return err
		}
		defer parent.Close()
		return unix.Mknodat(int(parent.Fd()), filepath.Base(name), kind|uint32(perm), int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	default:
		return fmt.Errorf("unknown entry type '%c'", h.Typeflag)
	}
	if os.Geteuid() == 0 && !c.has('m') {
		root.Lchown(name, h.Uid, h.Gid)
	}
	if h.Typeflag == tar.TypeReg {
		root.Chmod(name, perm)
		return root.Chtimes(name, h.ModTime, h.ModTime)
	}
	return nil
}

func (c *ctx) tarList(h *tar.Header) {
	if !c.has('v') {
		fmt.Fprintln(c.out, h.Name)
		return
	}
	owner := h.Uname + "/" + h.Gname
	if h.Uname == "" {
		owner = fmt.Sprintf("%d/%d", h.Uid, h.Gid)
	}
	to := ""
	switch h.Typeflag {
	case tar.TypeSymlink:
		to = " -> " + h.Linkname
	case tar.TypeLink:
		to = " link to " + h.Linkname
	}
	kinds := map[byte]uint32{tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}
	kind, ok := kinds[h.Typeflag]
	if !ok {
		kind = unix.S_IFREG
	}
	fmt.Fprintf(c.out, "%s %s %*d %s %s%s\n", modeString(kind|uint32(h.Mode)&0o7777), owner, max(0, 18-len(owner)), h.Size, h.ModTime.Format("2006-01-02 15:04"), h.Name, to)
}
