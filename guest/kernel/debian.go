package kernel

import (
	"context"
	"fmt"
	"regexp"
	"strings"
)

// defaultFlavour is the Debian kernel flavour with the drivers of virtual
// machines and little else; a third of the size of the full one.
const defaultFlavour = "cloud-amd64"

// A debianSpec names kernels of Debian's archive.
type debianSpec struct {
	series  string // "6.12", "6.1.0-56", or "" for the newest
	flavour string // "cloud-amd64", "amd64", ...
}

var (
	seriesRE  = regexp.MustCompile(`^[0-9]+(\.[0-9]+)+([-+.][0-9a-z.+]+)*$`)
	flavourRE = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

	// abiRE is a kernel ABI as package names carry it: 6.1.0-56,
	// 6.12.117+deb12, 6.12.9+bpo. Meta-packages (6.12) have two numbers only.
	abiRE = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+(-[0-9][0-9a-z.]*)?(\+[0-9a-z.]+)?$`)
)

// parseDebian parses debian[:SERIES[:FLAVOUR]] and reports whether the spec is
// one for Debian at all.
func parseDebian(spec string) (d debianSpec, ok bool, err error) {
	rest, ok := strings.CutPrefix(spec, "debian")
	if !ok || rest != "" && rest[0] != ':' {
		return d, false, nil
	}
	d.flavour = defaultFlavour
	if rest == "" {
		return d, true, nil
	}
	series, flavour, more := strings.Cut(rest[1:], ":")
	d.series = series
	if !seriesRE.MatchString(series) && (series != "" || !more) {
		return d, true, fmt.Errorf("kernel %s: bad series %q: write debian:6.12 or debian:6.12:amd64", spec, series)
	}
	if more {
		if flavour == "cloud" {
			flavour = defaultFlavour
		}
		if !flavourRE.MatchString(flavour) || !strings.HasSuffix(flavour, "amd64") {
			return d, true, fmt.Errorf("kernel %s: bad flavour %q: cloud-amd64 (small, the default), amd64 or rt-amd64", spec, flavour)
		}
		d.flavour = flavour
	}
	return d, true, nil
}

func (d debianSpec) String() string {
	s := "debian"
	if d.series != "" {
		s += ":" + d.series
	}
	if d.flavour == defaultFlavour {
		return s
	}
	if d.series == "" {
		s += ":"
	}
	return s + ":" + d.flavour
}

// abi returns the ABI of the package called name if it is a kernel that the
// spec asks for. Since 6.19 linux-image-* only depends on the packages that
// hold the kernel, linux-binary-* among them.
func (d debianSpec) abi(name string) (string, bool) {
	abi, ok := strings.CutPrefix(name, "linux-image-")
	if !ok {
		abi, ok = strings.CutPrefix(name, "linux-binary-")
	}
	if !ok {
		return "", false
	}
	if abi, ok = strings.CutSuffix(abi, "-"+d.flavour); !ok || !abiRE.MatchString(abi) {
		return "", false
	}
	if d.series != "" {
		rest, ok := strings.CutPrefix(abi, d.series)
		if !ok || rest != "" && isDigit(rest[0]) {
			return "", false
		}
	}
	return abi, true
}

// parts returns the packages that make up the kernel package called name, by
// its dependencies: itself before Debian's 6.19, later those for the image,
// the modules, and what both need.
func (d debianSpec) parts(name, depends string) []string {
	abi, ok := d.abi(name)
	if !ok {
		return []string{name}
	}
	var parts []string
	for _, dep := range strings.FieldsFunc(depends, func(r rune) bool { return r == ',' || r == '|' }) {
		dep, _, _ = strings.Cut(strings.TrimSpace(dep), " ")
		for _, part := range []string{"base", "binary", "modules"} {
			if dep == "linux-"+part+"-"+abi+"-"+d.flavour {
				parts = append(parts, dep)
			}
		}
	}
	if len(parts) == 0 {
		return []string{name}
	}
	return parts
}

// newest returns the package with the highest ABI of those that the spec asks
// for, or "".
func (d debianSpec) newest(packages []string) string {
	best, bestABI := "", ""
	for _, p := range packages {
		if abi, ok := d.abi(p); ok && (best == "" || compareReleases(abi, bestABI) > 0) {
			best, bestABI = p, abi
		}
	}
	return best
}

// resolveDebian takes the newest cached kernel that the spec asks for, and
// fetches one if there is none.
func (c *cache) resolveDebian(ctx context.Context, d debianSpec, o Options) (*Kernel, error) {
	all, err := c.all()
	if err != nil {
		return nil, err
	}
	for _, e := range all { // newest first
		if _, ok := d.abi(e.meta.Package); ok {
			return c.fromEntry(e, o)
		}
	}
	if o.Offline {
		return nil, fmt.Errorf("kernel %s: not in the cache: get it with hvpost kernel fetch %s", d, d)
	}
	return c.fetch(ctx, d, o)
}

// Fetch gets the newest kernel that a debian spec names from Debian's archive,
// with the host's apt-get but without touching its state, and puts it into the
// cache. A kernel that is there already is not downloaded again.
func Fetch(ctx context.Context, spec string, o Options) (*Kernel, error) {
	c, err := openCache(o.CacheDir)
	if err != nil {
		return nil, err
	}
	d, ok, err := parseDebian(spec)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("kernel %s: only Debian's kernels can be fetched: debian, debian:6.12, debian:6.12:amd64", spec)
	}
	return c.fetch(ctx, d, o)
}
