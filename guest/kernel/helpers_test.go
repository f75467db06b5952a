package kernel

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

const testRelease = "6.9.1+test"

// file is an entry of a test archive.
type file struct {
	name string
	data []byte
	typ  byte   // 0 for a regular file
	link string // target
}

func tarball(t testing.TB, files []file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: f.typ, Linkname: f.link, Mode: 0o644, Size: int64(len(f.data)), ModTime: time.Unix(1700000000, 0)}
		if f.typ == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compress(t testing.TB, ext string, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var err error
	switch ext {
	case "":
		return p
	case ".xz":
		var w *xz.Writer
		if w, err = xz.NewWriter(&b); err == nil {
			if _, err = w.Write(p); err == nil {
				err = w.Close()
			}
		}
	case ".zst":
		var w *zstd.Encoder
		if w, err = zstd.NewWriter(&b, zstd.WithEncoderCRC(true)); err == nil {
			if _, err = w.Write(p); err == nil {
				err = w.Close()
			}
		}
	case ".gz":
		w := gzip.NewWriter(&b)
		if _, err = w.Write(p); err == nil {
			err = w.Close()
		}
	default:
		t.Fatalf("no such compression: %s", ext)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type member struct {
	name string
	data []byte
}

func arFile(members ...member) []byte {
	b := []byte("!<arch>\n")
	for _, m := range members {
		b = fmt.Appendf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.data))
		b = append(b, m.data...)
		if len(m.data)%2 == 1 {
			b = append(b, '\n')
		}
	}
	return b
}

// makeDeb returns a package that holds files, its archives compressed as ext
// says.
func makeDeb(t testing.TB, ext, arch string, files []file) []byte {
	t.Helper()
	control := fmt.Sprintf("Package: linux-image-%s\nVersion: 1.0\nArchitecture: %s\nDescription: test\n", testRelease, arch)
	return arFile(
		member{"debian-binary", []byte("2.0\n")},
		member{"control.tar" + ext, compress(t, ext, tarball(t, []file{{name: "./control", data: []byte(control)}}))},
		member{"data.tar" + ext, compress(t, ext, tarball(t, files))},
	)
}

// bzImage returns the smallest file that passes for a kernel of that release.
func bzImage(release string) []byte {
	b := make([]byte, 4096)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x600)
	copy(b[0x800:], release+" (builder@host) #1 SMP\x00")
	return b
}

// vmlinux returns the smallest file that passes for an unpacked kernel.
func vmlinux(release string) []byte {
	b := make([]byte, 3000)
	copy(b, "\x7fELF\x02\x01\x01")
	copy(b[2000:], "Linux version "+release+" (builder@host) #1\x00")
	return b
}

// ko returns a relocatable ELF file with a .modinfo section of these strings.
func ko(info ...string) []byte {
	le := binary.LittleEndian
	var modinfo []byte
	for _, s := range info {
		modinfo = append(append(modinfo, s...), 0)
	}
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 1)  // ET_REL
	le.PutUint16(b[18:], 62) // EM_X86_64
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	infoOff := len(b)
	b = append(b, modinfo...)
	namesOff := len(b)
	b = append(b, names...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	le.PutUint64(b[40:], uint64(len(b)))
	section := func(name uint32, off, size int) {
		s := make([]byte, 64)
		le.PutUint32(s, name)
		le.PutUint32(s[4:], 1)
		le.PutUint64(s[24:], uint64(off))
		le.PutUint64(s[32:], uint64(size))
		b = append(b, s...)
	}
	section(0, 0, 0)
	section(1, infoOff, len(modinfo))
	section(10, namesOff, len(names))
	return b
}

func write(t testing.TB, path string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// kernelFiles are the files of a sound kernel package.
func kernelFiles() []file {
	m := "./lib/modules/" + testRelease + "/"
	return []file{
		{name: "./", typ: tar.TypeDir},
		{name: "./boot/", typ: tar.TypeDir},
		{name: "./boot/config-" + testRelease, data: []byte("CONFIG_HYPERV=m\n# CONFIG_X is not set\nCONFIG_LOCALVERSION=\"-test\"\n")},
		{name: "./boot/System.map-" + testRelease, data: []byte("not needed\n")},
		{name: "./boot/vmlinuz-" + testRelease, data: bzImage(testRelease)},
		{name: m, typ: tar.TypeDir},
		{name: m + "build", typ: tar.TypeSymlink, link: "/usr/src/linux-headers-" + testRelease},
		{name: m + "modules.order", data: []byte("kernel/drivers/hv/hv_vmbus.ko\nkernel/drivers/net/hyperv/hv_netvsc.ko\nkernel/fs/zfoo/z-foo.ko\n")},
		{name: m + "modules.builtin", data: []byte("kernel/fs/ext4/ext4.ko\n")},
		{name: m + "modules.builtin.modinfo", data: []byte("ext4.alias=fs-ext4\x00ext4.license=GPL\x00")},
		{name: m + "kernel/drivers/hv/hv_vmbus.ko", data: ko("license=GPL", "depends=")},
		{name: m + "kernel/drivers/net/hyperv/hv_netvsc.ko", data: ko("alias=vmbus:635161f83edfc546913ff2d2f965ed0e", "depends=hv_vmbus,ext4")},
		{name: m + "kernel/fs/zfoo/z-foo.ko", data: ko("alias=fs-zfoo", "depends=hv_vmbus", "softdep=pre: crypto-x hv_netvsc post: nothere")},
		{name: "./usr/share/doc/x/copyright", data: []byte("text\n")},
	}
}

// leftovers returns what is in a cache directory besides locks.
func leftovers(t testing.TB, dir string) []string {
	t.Helper()
	var names []string
	list, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, d := range list {
		if d.Name() != ".locks" {
			names = append(names, d.Name())
		}
	}
	return names
}
