package kernel

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"unicode"
)

// Bounds on what a package can make us do. The full Debian kernel flavour is
// about 110 MB and 4700 files; one with debug information about 1.5 GB.
const (
	maxDebBytes     = 4 << 30 // the package file, and each member of it
	maxDebMembers   = 64      // ar members; deb(5) knows three
	maxExtract      = 8 << 30 // file bytes written by one extraction
	maxExtractFiles = 200_000
	maxControl      = 1 << 20 // the control file
)

var errNotDeb = errors.New("not a Debian package")

// A debFile is a Debian binary package, deb(5): an ar archive that holds
// debian-binary, control.tar and data.tar, the last two perhaps compressed.
type debFile struct {
	Package, Version, Arch string

	path string
	file io.ReaderAt
	size int64

	data *io.SectionReader
}

// open reads the structure of the package and its control file. Errors do not
// name the file; the caller does.
func (d *debFile) open() error {
	if d.size > maxDebBytes {
		return fmt.Errorf("%d bytes: %w", d.size, errTooBig)
	}
	var control *io.SectionReader
	first := true
	err := walkAr(d.file, d.size, func(name string, body *io.SectionReader) error {
		switch {
		case first:
			first = false
			if name != "debian-binary" {
				return fmt.Errorf("%w: first member is %q", errNotDeb, name)
			}
			v, err := readBounded(body, 64)
			if err != nil {
				return fmt.Errorf("debian-binary: %w", err)
			}
			if !strings.HasPrefix(string(v), "2.") {
				return fmt.Errorf("%w of version 2: version %q", errNotDeb, strings.TrimSpace(string(v)))
			}
		case strings.HasPrefix(name, "control.tar") && control == nil:
			control = body
		case strings.HasPrefix(name, "data.tar") && d.data == nil:
			d.data = body
		}
		return nil
	})
	if err != nil {
		return err
	}
	if control == nil || d.data == nil {
		return fmt.Errorf("%w: no control.tar or no data.tar", errNotDeb)
	}
	if err := d.readControl(control); err != nil {
		return fmt.Errorf("control.tar: %w", err)
	}
	return nil
}

// walkAr calls f for each member of the ar archive in the first size bytes of
// r. Names come without the trailing slash that GNU ar writes.
func walkAr(r io.ReaderAt, size int64, f func(name string, body *io.SectionReader) error) error {
	const magic, header = "!<arch>\n", 60
	var m [len(magic)]byte
	if err := readFull(r, m[:], 0, size); err != nil || string(m[:]) != magic {
		return fmt.Errorf("%w: no ar archive", errNotDeb)
	}
	off := int64(len(magic))
	for n := 0; off < size; n++ {
		if n == maxDebMembers {
			return fmt.Errorf("%w: over %d members", errNotDeb, maxDebMembers)
		}
		var h [header]byte
		if err := readFull(r, h[:], off, size); err != nil {
			return fmt.Errorf("truncated: member header at byte %d: %w", off, err)
		}
		if h[58] != '`' || h[59] != '\n' {
			return fmt.Errorf("%w: bad member header at byte %d", errNotDeb, off)
		}
		name := strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/")
		length, err := strconv.ParseUint(strings.TrimRight(string(h[48:58]), " "), 10, 63)
		if err != nil {
			return fmt.Errorf("%w: member %q has no size", errNotDeb, name)
		}
		off += header
		if int64(length) > size-off {
			return fmt.Errorf("truncated: member %q needs %d bytes, %d are left", name, length, size-off)
		}
		if err := f(name, io.NewSectionReader(r, off, int64(length))); err != nil {
			return err
		}
		off += int64(length) + int64(length)&1 // members start on even offsets
	}
	return nil
}

func readFull(r io.ReaderAt, p []byte, off, size int64) error {
	if off+int64(len(p)) > size {
		return io.ErrUnexpectedEOF
	}
	_, err := r.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil // ReadAt may say so together with the last bytes
	}
	return err
}

// readControl takes the fields we use from the control file.
func (d *debFile) readControl(r io.Reader) error {
	found := false
	err := walkTar(context.Background(), r, func(h *tar.Header, name string, body io.Reader) error {
		if name != "control" || found {
			return nil
		}
		found = true
		b, err := readBounded(body, maxControl)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(b), "\n") {
			key, value, _ := strings.Cut(line, ":")
			value = strings.TrimSpace(value)
			switch key {
			case "Package":
				d.Package = value
			case "Version":
				d.Version = value
			case "Architecture":
				d.Arch = value
			}
		}
		return nil
	})
	if err == nil && !found {
		err = errors.New("no control file in it")
	}
	return err
}

// walk calls f for each entry of data.tar. Names are relative and clean.
func (d *debFile) walk(ctx context.Context, f func(h *tar.Header, name string, body io.Reader) error) error {
	d.data.Seek(0, io.SeekStart) // cannot fail: a section reader and offset 0
	if err := walkTar(ctx, d.data, f); err != nil {
		return fmt.Errorf("data.tar: %w", err)
	}
	return nil
}

// walkTar calls f for each entry of a tar archive, compressed or not. Names
// come clean and relative, without "./"; an entry that points out of the
// archive is an error. It reads to the end of the compressed stream, so that
// its checksum is checked.
func walkTar(ctx context.Context, r io.Reader, f func(h *tar.Header, name string, body io.Reader) error) error {
	z, err := decompress(r)
	if err != nil {
		return err
	}
	defer z.Close()
	limited := &io.LimitedReader{R: z, N: maxExtract}
	b := bufio.NewReaderSize(limited, 256<<10)
	t := tar.NewReader(b)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return truncated(err)
		}
		if n == maxExtractFiles {
			return fmt.Errorf("over %d files: %w", maxExtractFiles, errTooBig)
		}
		name, err := cleanName(h.Name)
		if err != nil {
			return err
		}
		if name == "." {
			continue
		}
		if err := f(h, name, t); err != nil {
			return truncated(err)
		}
	}
	if _, err := io.Copy(io.Discard, b); err != nil {
		return truncated(err)
	}
	if limited.N == 0 {
		return fmt.Errorf("%w (%d bytes)", errTooBig, int64(maxExtract))
	}
	return nil
}

func truncated(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("truncated or corrupt: %w", err)
	}
	return err
}

// cleanName returns the relative form of a name in a tar archive and refuses
// names that would leave the directory it is extracted to.
func cleanName(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("file name %q leaves the archive", name)
	}
	// No kernel has such files, and error texts are one line.
	if strings.ContainsFunc(name, unicode.IsControl) {
		return "", fmt.Errorf("file name %q has control characters in it", name)
	}
	return clean, nil
}
