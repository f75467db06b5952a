package agent

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// maxModule bounds an unpacked module in bytes; the largest of a distribution
// kernel are a few MiB.
const maxModule = 256 << 20

// loadModule loads one entry of the job's module list: "path" or
// "path opt=val ...". A module that is there already counts as loaded.
func loadModule(entry string) error {
	path, opts, _ := strings.Cut(entry, " ")
	if err := LoadModule(path, strings.TrimSpace(opts)); err != nil {
		return err
	}
	return nil
}

// LoadModule loads the kernel module in the file at path, packed or not, with
// the given options. A module that is there already counts as loaded.
func LoadModule(path, opts string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("module: %w", err)
	}
	defer f.Close()
	var magic [6]byte
	n, err := f.ReadAt(magic[:], 0)
	if err != nil && err != io.EOF {
		return fmt.Errorf("module %s: %w", path, err)
	}
	unpack := unpacker(magic[:n])
	if unpack == nil {
		// The kernel reads the file itself: no copy through us.
		err = unix.FinitModule(int(f.Fd()), opts, 0)
	} else {
		var image []byte
		if image, err = unpack(f); err == nil {
			err = unix.InitModule(image, opts)
		}
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("module %s: %w", path, err)
	}
	return nil
}

// unpacker returns what unpacks a file with the given first bytes, or nil for
// a plain module.
func unpacker(magic []byte) func(io.Reader) ([]byte, error) {
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return func(r io.Reader) ([]byte, error) {
			z, err := gzip.NewReader(r)
			if err != nil {
				return nil, err
			}
			return readModule(z)
		}
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return func(r io.Reader) ([]byte, error) {
			z, err := xz.NewReader(r)
			if err != nil {
				return nil, err
			}
			return readModule(z)
		}
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return func(r io.Reader) ([]byte, error) {
			z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModule))
			if err != nil {
				return nil, err
			}
			defer z.Close()
			return readModule(z)
		}
	}
	return nil
}

func readModule(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(b) > maxModule {
		err = fmt.Errorf("more than %d MiB unpacked", maxModule>>20)
	}
	return b, err
}
