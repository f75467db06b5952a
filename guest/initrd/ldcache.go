package initrd

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
)

// Bounds on the files of ld.so; a desktop's cache is about 150 KB.
const (
	maxCacheBytes  = 64 << 20
	maxConfBytes   = 1 << 20
	maxConfInclude = 8 // depth of include lines
)

// librarySearch is where this host's ld.so looks when nothing in the program
// says where.
type librarySearch struct {
	cached     map[string][]string // ld.so.cache: name to paths
	defaults   []string            // built into ld.so
	configured []string            // /etc/ld.so.conf, musl's path file
}

// defaultLibraryDirs are those built into the ld.so of the distributions at
// hand: Debian's multiarch directories, then the ones of the FHS.
var defaultLibraryDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu",
	"/lib64", "/usr/lib64", "/lib", "/usr/lib",
	"/lib/i386-linux-gnu", "/usr/lib/i386-linux-gnu", "/lib32", "/usr/lib32",
}

func newLibrarySearch() *librarySearch {
	s := &librarySearch{defaults: defaultLibraryDirs}
	if b, err := readSmall("/etc/ld.so.cache", maxCacheBytes); err == nil {
		s.cached = parseCache(b)
	}
	s.configured = readLdConf("/etc/ld.so.conf", maxConfInclude)
	if b, err := readSmall("/etc/ld-musl-x86_64.path", maxConfBytes); err == nil {
		s.configured = append(s.configured, strings.FieldsFunc(string(b), func(r rune) bool { return r == ':' || r == '\n' })...)
	}
	return s
}

// readSmall reads a file that is not larger than max.
func readSmall(path string, max int64) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > max || !st.Mode().IsRegular() {
		return nil, os.ErrInvalid
	}
	return os.ReadFile(path)
}

// parseCache reads the cache of ldconfig(8) in glibc's current format, alone
// or behind the old one, and returns library names to paths in the order of
// preference. A cache that it does not understand counts as empty: the
// directories are searched then.
func parseCache(b []byte) map[string][]string {
	const (
		magic    = "glibc-ld.so.cache1.1"
		header   = 48 // magic, count, length of strings, flags, extensions
		entry    = 24 // flags, name, path, OS version, hardware capabilities
		oldMagic = "ld.so-1.7.0\x00"
		oldEntry = 12
	)
	le := binary.LittleEndian
	if bytes.HasPrefix(b, []byte(oldMagic)) && len(b) >= 16 {
		// magic, count, entries, then the current format aligned to 8
		skip := (16 + uint64(le.Uint32(b[12:]))*oldEntry + 7) &^ 7
		if skip > uint64(len(b)) {
			return nil
		}
		b = b[skip:]
	}
	if len(b) < header || !bytes.HasPrefix(b, []byte(magic)) {
		return nil
	}
	n := uint64(le.Uint32(b[20:]))
	if n > uint64(len(b)-header)/entry {
		return nil
	}
	str := func(off uint32) string {
		if uint64(off) >= uint64(len(b)) {
			return ""
		}
		s, _, ok := bytes.Cut(b[off:], []byte{0})
		if !ok {
			return ""
		}
		return string(s)
	}
	m := make(map[string][]string, n)
	for i := range n {
		e := b[header+i*entry:][:entry]
		if le.Uint64(e[16:]) != 0 {
			continue // for some processors only; the guest's is not known
		}
		name, path := str(le.Uint32(e[4:])), str(le.Uint32(e[8:]))
		if name != "" && filepath.IsAbs(path) {
			m[name] = append(m[name], path)
		}
	}
	return m
}

// readLdConf returns the directories of an ld.so.conf file and of what it
// includes. Files that cannot be read are passed over, as ldconfig does.
func readLdConf(path string, depth int) []string {
	b, err := readSmall(path, maxConfBytes)
	if err != nil {
		return nil
	}
	var dirs []string
	for _, line := range strings.Split(string(b), "\n") {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || f[0] == "hwcap":
		case f[0] == "include":
			for _, pattern := range f[1:] {
				if !filepath.IsAbs(pattern) {
					pattern = filepath.Join(filepath.Dir(path), pattern)
				}
				found, err := filepath.Glob(pattern)
				if err != nil || depth == 0 {
					continue
				}
				for _, p := range found {
					dirs = append(dirs, readLdConf(p, depth-1)...)
				}
			}
		default:
			for _, d := range f {
				if d, _, _ = strings.Cut(d, "="); filepath.IsAbs(d) { // "dir=TYPE" is of libc5's time
					dirs = append(dirs, d)
				}
			}
		}
	}
	return dirs
}
