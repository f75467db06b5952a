package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxImageBytes bounds a kernel image; a vmlinux with debug information is
// about 1 GiB.
const maxImageBytes = 4 << 30

// The two shapes of kernel image that a guest can boot from.
const (
	formatBzImage = "bzImage"
	formatELF     = "vmlinux"
)

// ErrNotKernel reports a file that is no x86 kernel image.
var ErrNotKernel = errors.New("neither a bzImage nor an ELF kernel")

// image is what the bytes of a kernel image say about it.
type image struct {
	Format  string // formatBzImage or formatELF
	Release string // uname -r; empty for an ELF file that is not Linux
	SHA256  string // hex, of the whole file
	Size    int64
}

// probeImage reads the kernel image in path.
func probeImage(path string) (image, error) {
	f, err := openRegular(path)
	if err != nil {
		return image{}, err
	}
	defer f.Close()
	im, err := readImage(f)
	if err != nil {
		return image{}, fmt.Errorf("kernel %s: %w", path, err)
	}
	return im, nil
}

func readImage(f io.ReaderAt) (image, error) {
	// The setup header and the version string lie in the first
	// (setup_sects+1)*512 bytes: at most 32.5 KiB.
	head := make([]byte, 33<<10)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return image{}, err
	}
	head = head[:n]
	im := image{}
	switch {
	case len(head) >= 0x264 && string(head[0x202:0x206]) == "HdrS":
		im.Format, im.Release = formatBzImage, bzImageRelease(head)
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		im.Format = formatELF
	default:
		return image{}, fmt.Errorf("%w (it starts with %q)", ErrNotKernel, head[:min(4, len(head))])
	}
	h := sha256.New()
	s := &versionScanner{found: im.Release}
	im.Size, err = copyBounded(io.MultiWriter(h, s), io.NewSectionReader(f, 0, maxImageBytes+1), maxImageBytes)
	if err != nil {
		return image{}, err
	}
	im.SHA256 = hex.EncodeToString(h.Sum(nil))
	if im.Format == formatELF {
		im.Release = s.found
	}
	return im, nil
}

// bzImageRelease returns the release that the setup header's kernel_version
// field points to (Documentation/arch/x86/boot.rst): the first word.
func bzImageRelease(head []byte) string {
	off := int(binary.LittleEndian.Uint16(head[0x20e:]))
	if off == 0 || off+0x200 >= len(head) {
		return ""
	}
	return releaseWord(head[off+0x200:])
}

// releaseWord returns the first word of b if it looks like a release.
func releaseWord(b []byte) string {
	b = b[:min(len(b), 128)]
	n := bytes.IndexAny(b, " \x00\n")
	if n <= 0 || !isDigit(b[0]) {
		return ""
	}
	w := string(b[:n])
	if strings.ContainsAny(w, "/\\") || strings.Contains(w, "..") {
		return ""
	}
	return w
}

// versionScanner finds the first "Linux version X" in what is written to it:
// the banner that every Linux image carries in its data.
type versionScanner struct {
	found string
	tail  []byte
}

var banner = []byte("Linux version ")

func (s *versionScanner) Write(p []byte) (int, error) {
	if s.found != "" {
		return len(p), nil
	}
	const keep = 256
	// The join of the last write and this one, then this one by itself:
	// nothing is missed, and the large write is not copied.
	s.tail = append(s.tail, p[:min(len(p), keep)]...)
	s.search(s.tail)
	s.search(p)
	if len(p) >= keep {
		s.tail = append(s.tail[:0], p[len(p)-keep:]...)
	} else if len(s.tail) > keep {
		s.tail = append(s.tail[:0], s.tail[len(s.tail)-keep:]...)
	}
	return len(p), nil
}

func (s *versionScanner) search(b []byte) {
	for s.found == "" {
		i := bytes.Index(b, banner)
		if i < 0 {
			return
		}
		b = b[i+len(banner):]
		s.found = releaseWord(b)
	}
}

// openRegular opens a regular file; anything else (a directory, a FIFO that
// would block) is an error that names it.
func openRegular(path string) (*os.File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	return os.Open(path)
}
