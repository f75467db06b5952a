package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The files of a cache entry. Everything else in it is named by the package
// that it came from.
const (
	metaFile    = "meta.json"
	vmlinuxFile = "vmlinux"
	indexFile   = "modules.index"
	moduleDir   = "ko" // decompressed modules

	metaFormat = 1 // raised when old entries must not be used
	maxMeta    = 1 << 20
)

// ErrNotFound reports a kernel that is not in the cache.
var ErrNotFound = errors.New("no such kernel")

// meta describes a cache entry; it is written last, so an entry without it is
// no entry.
type meta struct {
	Format int

	// Package entries own their files; the others only keep what was derived
	// from an image that lives elsewhere.
	Package    string `json:",omitempty"` // name of the Debian package
	Version    string `json:",omitempty"`
	PackageSum string `json:",omitempty"` // SHA-256 of the .deb files in order, hex

	Image     image
	ImagePath string // relative to the entry if it owns the file
	ConfigAt  string `json:",omitempty"` // the same
	ModulesAt string `json:",omitempty"` // the same

	Origins []fileID // the .deb files, or the image itself
	Created time.Time
}

// fileID tells whether a file is still the one that was read before, without
// reading it again.
type fileID struct {
	Path  string
	Size  int64
	MTime int64 // ns
}

func identify(path string) (fileID, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fileID{}, err
	}
	st, err := os.Stat(abs)
	if err != nil {
		return fileID{}, err
	}
	return fileID{Path: abs, Size: st.Size(), MTime: st.ModTime().UnixNano()}, nil
}

// A cache is the directory that holds the entries. A cache that cannot be
// written (a read-only root, another user's home) still serves what it holds;
// what is missing then goes to a spare directory.
type cache struct {
	dir   string
	spare string
}

// openCache returns the cache in dir, or the user's own if dir is empty.
func openCache(dir string) (*cache, error) {
	spare := filepath.Join(os.TempDir(), "hvpost-"+strconv.Itoa(os.Getuid()), "kernels")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil { // no HOME: a bare container or a service
			return &cache{dir: spare, spare: spare}, nil
		}
		dir = filepath.Join(base, "hvpost", "kernels")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	return &cache{dir: dir, spare: spare}, nil
}

// roots returns the directories to look in, the preferred one first.
func (c *cache) roots() []string {
	if c.dir == c.spare {
		return []string{c.dir}
	}
	return []string{c.dir, c.spare}
}

// writable returns a directory that new entries can be written to.
func (c *cache) writable() (string, error) {
	if c.dir == c.spare {
		return c.spare, c.makeSpare()
	}
	err := os.MkdirAll(c.dir, 0o755)
	if err == nil {
		err = unix.Access(c.dir, unix.W_OK)
	}
	if err == nil {
		return c.dir, nil
	}
	if !readOnly(err) {
		return "", fmt.Errorf("kernel cache %s: %w", c.dir, err)
	}
	return c.spare, c.makeSpare()
}

// makeSpare makes the spare directory. Its parent lies in a world-writable
// directory, so it must be ours alone.
func (c *cache) makeSpare() error {
	top := filepath.Dir(c.spare)
	if err := os.Mkdir(top, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("kernel cache: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(top, &st); err != nil {
		return fmt.Errorf("kernel cache %s: %w", top, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Getuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("kernel cache %s: not a directory of this user alone: remove it", top)
	}
	if err := os.MkdirAll(c.spare, 0o700); err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	return nil
}

func readOnly(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS)
}

// An entry is one kernel in the cache.
type entry struct {
	root string // the cache directory
	name string
	meta meta
}

func (e *entry) dir() string { return filepath.Join(e.root, e.name) }

// path returns where a file named in the meta data lies.
func (e *entry) path(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(e.dir(), p)
}

// load reads the entry called name, from wherever it is.
func (c *cache) load(name string) (*entry, error) {
	if !validName(name) {
		return nil, fmt.Errorf("%w: %q", ErrNotFound, name)
	}
	for _, root := range c.roots() {
		if e, err := loadEntry(root, name); err == nil {
			return e, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
}

func loadEntry(root, name string) (*entry, error) {
	e := &entry{root: root, name: name}
	b, err := os.ReadFile(filepath.Join(e.dir(), metaFile))
	if err != nil {
		return nil, err
	}
	if len(b) > maxMeta {
		return nil, fmt.Errorf("%s: %w", metaFile, errTooBig)
	}
	if err := json.Unmarshal(b, &e.meta); err != nil {
		return nil, err
	}
	if e.meta.Format != metaFormat {
		return nil, fmt.Errorf("%s: written by another version", metaFile)
	}
	return e, nil
}

// all returns every entry, newest release first.
func (c *cache) all() ([]*entry, error) {
	var all []*entry
	seen := map[string]bool{}
	for _, root := range c.roots() {
		names, err := os.ReadDir(root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("kernel cache: %w", err)
		}
		for _, d := range names {
			if !validName(d.Name()) || seen[d.Name()] {
				continue
			}
			if e, err := loadEntry(root, d.Name()); err == nil {
				seen[e.name] = true
				all = append(all, e)
			}
		}
	}
	sort.SliceStable(all, func(i, j int) bool {
		if c := compareReleases(all[i].meta.Image.Release, all[j].meta.Image.Release); c != 0 {
			return c > 0
		}
		return all[i].meta.Created.After(all[j].meta.Created)
	})
	return all, nil
}

// validName reports whether name can be that of an entry; names that start
// with a dot are locks and work in progress.
func validName(name string) bool {
	return name != "" && name[0] != '.' && !strings.ContainsAny(name, "/\x00") && len(name) <= 255
}

// lock waits for the named lock in root and returns its release. Locks guard
// local work of seconds, never a download, so the wait is not interruptible.
func lock(root, name string) (func(), error) {
	dir := filepath.Join(root, ".locks")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("kernel cache: lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil // the lock goes with the descriptor
}

// tempDir makes a directory for work in progress. Directories that a killed
// process left behind are removed when they are a day old.
func tempDir(root string) (string, error) {
	const prefix, stale = ".tmp-", 24 * time.Hour
	if names, err := os.ReadDir(root); err == nil {
		for _, d := range names {
			if st, err := d.Info(); err == nil && strings.HasPrefix(d.Name(), prefix) && time.Since(st.ModTime()) > stale {
				os.RemoveAll(filepath.Join(root, d.Name()))
			}
		}
	}
	dir, err := os.MkdirTemp(root, prefix)
	if err != nil {
		return "", fmt.Errorf("kernel cache: %w", err)
	}
	// MkdirTemp gives 0700; entries are public like the packages they hold.
	if err := os.Chmod(dir, 0o755); err != nil {
		os.RemoveAll(dir)
		return "", fmt.Errorf("kernel cache: %w", err)
	}
	return dir, nil
}

// writeMeta writes the meta data that makes dir an entry.
func writeMeta(dir string, m meta) error {
	m.Format = metaFormat
	m.Created = time.Now().UTC().Truncate(time.Second)
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, metaFile), func(f *os.File) error {
		_, err := f.Write(append(b, '\n'))
		return err
	})
}

// writeFile makes path appear whole: fill writes a temporary file beside it,
// which is synced and renamed. Nothing is left behind on failure.
func writeFile(path string, fill func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// publish renames the finished directory tmp to the entry name, replacing
// what is there.
func publish(root, tmp, name string) error {
	target := filepath.Join(root, name)
	err := os.Rename(tmp, target)
	if err == nil {
		return nil
	}
	// A directory cannot be renamed over one that is not empty: move the old
	// one aside first. Files that are open in it stay readable.
	old, e := tempDir(root)
	if e != nil {
		return e
	}
	defer os.RemoveAll(old)
	if e := os.Rename(target, filepath.Join(old, "old")); e != nil && !errors.Is(e, fs.ErrNotExist) {
		return fmt.Errorf("kernel cache: %w", e)
	}
	if err := os.Rename(tmp, target); err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	return nil
}

// An Entry is a kernel in the cache, as List reports it.
type Entry struct {
	Name    string // what -k takes
	Release string
	Source  string    // the package and its version, or the image's path
	Dir     string    // absolute
	Size    int64     // bytes on disk, derived files included
	Created time.Time // when it entered the cache
	Package bool      // false: the image lies elsewhere, only derived files are here
}

// List returns the kernels in the cache, newest release first.
func List(o Options) ([]Entry, error) {
	c, err := openCache(o.CacheDir)
	if err != nil {
		return nil, err
	}
	all, err := c.all()
	if err != nil {
		return nil, err
	}
	list := make([]Entry, 0, len(all))
	for _, e := range all {
		list = append(list, Entry{
			Name: e.name, Release: e.meta.Image.Release, Source: e.source(), Dir: e.dir(),
			Size: diskUsage(e.dir()), Created: e.meta.Created, Package: e.meta.Package != "",
		})
	}
	return list, nil
}

func (e *entry) source() string {
	if e.meta.Package != "" {
		return e.meta.Package + " " + e.meta.Version
	}
	return e.meta.ImagePath
}

// diskUsage adds up the blocks of the files under dir; what it cannot read
// does not count.
func diskUsage(dir string) int64 {
	var n int64
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if st, err := d.Info(); err == nil {
			if sys, ok := st.Sys().(*syscall.Stat_t); ok {
				n += sys.Blocks * 512
			} else {
				n += st.Size()
			}
		}
		return nil
	})
	return n
}

// Remove deletes a kernel from the cache by the name that List gives.
func Remove(name string, o Options) error {
	c, err := openCache(o.CacheDir)
	if err != nil {
		return err
	}
	e, err := c.load(name)
	if err != nil {
		return fmt.Errorf("%w (see hvpost kernel list)", err)
	}
	// Away under one rename first, so that nobody finds half an entry.
	aside, err := tempDir(e.root)
	if err != nil {
		return err
	}
	defer os.RemoveAll(aside)
	if err := os.Rename(e.dir(), filepath.Join(aside, "old")); err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	if err := os.RemoveAll(aside); err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	return nil
}
