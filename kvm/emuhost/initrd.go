package emuhost

import (
	"bufio"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm/emuhost/inside"
)

// maxModule bounds a module's size unpacked, in bytes; kvm, the largest that is needed, has 3 MB.
const maxModule = 64 << 20

// writeInitrd writes the initramfs of the emulated host: a device node, the program as /init, and the modules.
func writeInitrd(name, self string, modules []string) error {
	if err := checkStatic(self); err != nil {
		return err
	}
	mods := make([][]byte, len(modules))
	var g errgroup.Group
	for i, m := range modules {
		g.Go(func() (err error) {
			mods[i], err = readModule(m)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("emulated host: initramfs: %w", err)
	}
	defer out.Close()
	w := &cpio{w: bufio.NewWriterSize(out, 1<<20)}
	w.add("dev", unix.S_IFDIR|0o755, 0, 0, nil, 0)
	// The kernel opens it as PID 1's standard streams.
	w.add("dev/console", unix.S_IFCHR|0o600, 5, 1, nil, 0)
	in, err := os.Open(self)
	if err != nil {
		return fmt.Errorf("emulated host: initramfs: %w", err)
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return fmt.Errorf("emulated host: initramfs: %w", err)
	}
	w.add("init", unix.S_IFREG|0o755, 0, 0, in, st.Size())
	dir := strings.TrimPrefix(inside.ModuleDir, "/")
	w.add(dir, unix.S_IFDIR|0o755, 0, 0, nil, 0)
	for i, m := range mods {
		base, _, _ := strings.Cut(filepath.Base(modules[i]), ".ko")
		w.add(fmt.Sprintf("%s/%02d-%s.ko", dir, i, base), unix.S_IFREG|0o644, 0, 0, strings.NewReader(string(m)), int64(len(m)))
	}
	w.add("TRAILER!!!", 0, 0, 0, nil, 0)
	if w.err == nil {
		w.err = w.w.Flush()
	}
	if w.err == nil {
		w.err = out.Close()
	}
	if w.err != nil {
		return fmt.Errorf("emulated host: initramfs: %w", w.err)
	}
	return nil
}

// cpio writes the "newc" format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
// Its first error stays.
type cpio struct {
	w   *bufio.Writer
	n   int64 // bytes written
	ino uint32
	err error
}

func (c *cpio) write(p []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(p)
		c.n += int64(len(p))
	}
}

func (c *cpio) pad() { c.write(make([]byte, -c.n&3)) }

// add writes one entry. The device numbers are of a device node; body may be nil.
func (c *cpio) add(name string, mode, major, minor uint32, body io.Reader, size int64) {
	if size > 1<<32-1 && c.err == nil {
		c.err = fmt.Errorf("%s: %d bytes do not fit into a cpio archive", name, size)
	}
	c.ino++
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0))
	c.write(append([]byte(name), 0))
	c.pad()
	if body != nil && c.err == nil {
		var n int64
		n, c.err = io.CopyN(c.w, body, size)
		c.n += n
	}
	c.pad()
}

// checkStatic refuses a program that needs a dynamic loader, which the initramfs has not.
func checkStatic(self string) error {
	f, err := elf.Open(self)
	if err != nil {
		return fmt.Errorf("emulated host: %s: %w", self, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("emulated host: %s is dynamically linked and cannot be PID 1; build it with CGO_ENABLED=0 and without -race", self)
		}
	}
	return nil
}

// readModule returns a module, unpacked and without its signature. The kernel would spend most of half a second of
// emulated time on verifying nine signatures; a module without one only taints a kernel that does not insist.
func readModule(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("emulated host: module: %w", err)
	}
	defer f.Close()
	var r io.Reader = bufio.NewReader(f)
	switch filepath.Ext(name) {
	case ".xz":
		r, err = xz.NewReader(r)
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(r); err == nil {
			defer d.Close()
			r = d
		}
	case ".gz":
		r, err = gzip.NewReader(r)
	}
	var b []byte
	if err == nil {
		b, err = io.ReadAll(io.LimitReader(r, maxModule+1))
	}
	if err == nil && len(b) > maxModule {
		err = fmt.Errorf("more than %d MiB", maxModule>>20)
	}
	if err == nil && !strings.HasPrefix(string(b), elf.ELFMAG) {
		err = errors.New("not an ELF file")
	}
	if err != nil {
		return nil, fmt.Errorf("emulated host: module %s: %w", name, err)
	}
	return unsign(b), nil
}

// unsign cuts off a module's signature (include/linux/module_signature.h): the PKCS #7 message, 12 bytes of which the
// last four are its length in big-endian order, and a magic string.
func unsign(b []byte) []byte {
	const magic = "~Module signature appended~\n"
	n := len(b) - len(magic) - 12
	if n < 0 || string(b[len(b)-len(magic):]) != magic {
		return b
	}
	sig := int64(binary.BigEndian.Uint32(b[n+8:]))
	if sig > int64(n) {
		return b // the kernel will say what it thinks of it
	}
	return b[:int64(n)-sig]
}
