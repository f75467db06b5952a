package kernel

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// importDebs puts the kernel of a package, or of several that make up one
// kernel together, into the cache, unless it is there already, and returns its
// entry.
func (c *cache) importDebs(ctx context.Context, files []string, progress io.Writer) (*entry, error) {
	debs := make([]*debFile, 0, len(files))
	var origins []fileID
	for _, file := range files {
		f, err := openRegular(file)
		if err != nil {
			return nil, fmt.Errorf("kernel package %s: %w", file, bare(err))
		}
		defer f.Close()
		id, err := identify(file)
		if err != nil {
			return nil, fmt.Errorf("kernel package %s: %w", file, bare(err))
		}
		origins = append(origins, id)
		debs = append(debs, &debFile{path: file, file: f, size: id.Size})
	}
	entries, err := c.all()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.meta.Package != "" && slices.Equal(e.meta.Origins, origins) {
			return e, nil
		}
	}
	h := sha256.New()
	for _, d := range debs {
		if err := d.open(); err != nil {
			return nil, fmt.Errorf("%s: %w", d.path, err)
		}
		if _, err := io.Copy(h, io.NewSectionReader(d.file, 0, d.size)); err != nil {
			return nil, fmt.Errorf("%s: %w", d.path, err)
		}
	}
	sum := hex.EncodeToString(h.Sum(nil))
	root, err := c.writable()
	if err != nil {
		return nil, err
	}
	unlock, err := lock(root, "deb-"+sum[:16])
	if err != nil {
		return nil, err
	}
	defer unlock()
	if entries, err = c.all(); err != nil { // another process may have done it
		return nil, err
	}
	for _, e := range entries {
		if e.meta.PackageSum == sum {
			return e, nil
		}
	}
	tmp, err := tempDir(root)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	m, err := extractDebs(ctx, debs, tmp, progress)
	if err != nil {
		return nil, err
	}
	m.PackageSum, m.Origins = sum, origins
	if err := writeMeta(tmp, m); err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	name := m.Image.Release
	if _, err := loadEntry(root, name); err == nil {
		// Another build of the same release, both of use. What is no entry
		// (damaged, of an older format) is replaced.
		name += "-" + sum[:8]
	}
	if err := publish(root, tmp, name); err != nil {
		return nil, err
	}
	return loadEntry(root, name)
}

// extractDebs writes the parts of kernel packages that matter into dir:
// boot/vmlinuz-*, boot/config-* and lib/modules, which may hold the kernel and
// its configuration as well. usr/lib/modules is written as lib/modules, which
// merged-/usr systems make the same.
func extractDebs(ctx context.Context, debs []*debFile, dir string, progress io.Writer) (meta, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return meta{}, fmt.Errorf("kernel cache: %w", err)
	}
	defer root.Close()
	x := extraction{root: root}
	for _, d := range debs {
		if d.Arch != "amd64" && d.Arch != "all" {
			return meta{}, fmt.Errorf("%s: package for %s: guests are x86-64: get the amd64 one", d.path, orUnknown(d.Arch))
		}
		if progress != nil {
			fmt.Fprintf(progress, "unpacking %s\n", filepath.Base(d.path))
		}
		if err := d.walk(ctx, func(h *tar.Header, name string, body io.Reader) error { return x.choose(d, h, name, body) }); err != nil {
			return meta{}, fmt.Errorf("%s: %w", d.path, err)
		}
	}
	m := x.meta
	if m.ImagePath == "" {
		m.ImagePath, m.Package, m.Version = x.moduleImage, x.modulePackage, x.moduleVersion
	}
	if m.ConfigAt == "" {
		m.ConfigAt = x.moduleConfig
	}
	names := make([]string, len(debs))
	for i, d := range debs {
		names[i] = d.path
	}
	list := strings.Join(names, ", ")
	if m.ImagePath == "" {
		return m, fmt.Errorf("%s: a package without a kernel: no boot/vmlinuz-* in it: pass the one that has it (linux-binary-* since Debian's 6.19), and those with its modules after commas", list)
	}
	if m.Image, err = probeImage(filepath.Join(dir, m.ImagePath)); err != nil {
		return m, fmt.Errorf("%s: %w", list, err)
	}
	if m.Image.Release == "" {
		m.Image.Release = strings.TrimPrefix(strings.TrimPrefix(path.Base(m.ImagePath), "vmlinuz"), "-")
	}
	if !validName(m.Image.Release) {
		m.Image.Release = "unknown"
	}
	if own := "lib/modules/" + m.Image.Release; m.ModulesAt != own {
		if st, err := root.Stat(own); err == nil && st.IsDir() {
			m.ModulesAt = own
		}
	}
	return m, x.sync(m.ImagePath)
}

func orUnknown(s string) string {
	if s == "" {
		return "an unknown architecture"
	}
	return s
}

// extraction writes tar entries below a directory that it cannot leave: every
// path goes through os.Root, which refuses links that point outside.
type extraction struct {
	root  *os.Root
	bytes int64
	meta  meta // what was found where

	// In the directory of the modules; those in boot come first.
	moduleImage, modulePackage, moduleVersion string
	moduleConfig                              string
}

// choose writes one entry of a package if it is of use.
func (x *extraction) choose(d *debFile, h *tar.Header, name string, body io.Reader) error {
	name = strings.TrimPrefix(name, "usr/")
	base := path.Base(name)
	regular := h.Typeflag == tar.TypeReg
	inBoot := path.Dir(name) == "boot"
	modules, isModules := strings.CutPrefix(name, "lib/modules/")
	switch m := &x.meta; {
	case regular && inBoot && strings.HasPrefix(base, "vmlinuz"):
		if m.ImagePath != "" && m.ImagePath != name {
			return fmt.Errorf("two kernels: %s and %s", m.ImagePath, name)
		}
		m.ImagePath, m.Package, m.Version = name, d.Package, d.Version
	case regular && inBoot && strings.HasPrefix(base, "config-"):
		m.ConfigAt = name
	case isModules:
		release, file, _ := strings.Cut(modules, "/")
		if m.ModulesAt == "" {
			m.ModulesAt = "lib/modules/" + release
		}
		switch {
		case regular && file == "vmlinuz":
			if x.moduleImage != "" && x.moduleImage != name {
				return fmt.Errorf("two kernels: %s and %s", x.moduleImage, name)
			}
			x.moduleImage, x.modulePackage, x.moduleVersion = name, d.Package, d.Version
		case regular && file == "config":
			x.moduleConfig = name
		}
	default:
		return nil
	}
	return x.add(h, name, body)
}

func (x *extraction) add(h *tar.Header, name string, body io.Reader) error {
	if err := x.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return x.root.MkdirAll(name, 0o755)
	case tar.TypeReg:
		if h.Size > maxImageBytes || x.bytes+h.Size > maxExtract {
			return fmt.Errorf("%s: %d bytes: %w", name, h.Size, errTooBig)
		}
		x.bytes += h.Size
		x.root.Remove(name) // a second entry of that name wins, and is no link
		f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, body)
		if e := f.Close(); err == nil {
			err = e
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		// Build times tell files apart later (see index).
		return x.root.Chtimes(name, h.ModTime, h.ModTime)
	}
	// Links and devices have no place in what we take from a kernel package:
	// "build" and "source" link to headers that are not here.
	return nil
}

// sync makes one file durable: a power cut must not leave an entry whose
// image is empty.
func (x *extraction) sync(name string) error {
	f, err := x.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
