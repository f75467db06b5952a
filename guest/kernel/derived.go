package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

// derived is where files made from an entry go: the entry's own directory, or
// its namesake under the cache's spare directory when that cannot be written.
type derived struct {
	cache *cache
	entry *entry
	spare string // the spare directory for this very image
}

func (c *cache) derived(e *entry) (*derived, error) {
	// The image's sum in the name keeps files of an entry that has since been
	// replaced apart.
	sum := e.meta.Image.SHA256
	if len(sum) < 16 {
		return nil, fmt.Errorf("kernel %s: damaged cache entry: hvpost kernel rm %s", e.name, e.name)
	}
	return &derived{cache: c, entry: e, spare: filepath.Join(c.spare, ".derived-"+sum[:16])}, nil
}

// find returns the path of a derived file if it exists.
func (d *derived) find(name string) string {
	for _, dir := range []string{d.entry.dir(), d.spare} {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p
		}
	}
	return ""
}

// create makes a derived file whole with fill and returns its path. With keep,
// a file that another process made in the meantime is returned instead.
func (d *derived) create(name string, keep bool, fill func(*os.File) error) (string, error) {
	p, err := createIn(d.entry.dir(), name, keep, fill)
	if err == nil || !readOnly(err) {
		return p, err
	}
	if err := d.cache.makeSpare(); err != nil {
		return "", err
	}
	return createIn(d.spare, name, keep, fill)
}

func createIn(dir, name string, keep bool, fill func(*os.File) error) (string, error) {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("kernel cache: %w", err)
	}
	if keep {
		unlock, err := lock(filepath.Dir(dir), filepath.Base(dir))
		if err != nil {
			return "", err
		}
		defer unlock()
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
	}
	return path, writeFile(path, fill)
}

// externalName names the entry of an image outside the cache: by its path, so
// that a rebuilt kernel replaces what the last build left.
func externalName(path string) string {
	sum := sha256.Sum256([]byte(path))
	base := filepath.Base(path)
	if len(base) > 64 {
		base = base[:64]
	}
	return "file-" + base + "-" + hex.EncodeToString(sum[:6])
}
