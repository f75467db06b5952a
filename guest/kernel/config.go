package kernel

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// maxConfigBytes bounds a kernel configuration; today's are under 300 KiB.
const maxConfigBytes = 8 << 20

// A Config is a kernel's build configuration: the text of .config or
// /boot/config-*. It is searched when asked, for there are ten thousand options
// and a run asks for a few at most.
type Config []byte

// Enabled reports whether the option is built in or a module.
func (c Config) Enabled(option string) bool {
	v := c.Value(option)
	return v == "y" || v == "m"
}

// BuiltIn reports whether the option is built in.
func (c Config) BuiltIn(option string) bool { return c.Value(option) == "y" }

// Value returns the value of the option as written ("y", "m", a number, a
// string without its quotes), or "" if it is not set. The CONFIG_ prefix may be
// given or left out.
func (c Config) Value(option string) string {
	key := []byte("CONFIG_" + strings.TrimPrefix(option, "CONFIG_") + "=")
	for rest := []byte(c); ; {
		// The last one counts, as it does for Kconfig.
		i := bytes.LastIndex(rest, key)
		if i < 0 {
			return ""
		}
		if i > 0 && rest[i-1] != '\n' {
			rest = rest[:i]
			continue
		}
		line, _, _ := bytes.Cut(c[i+len(key):], []byte("\n"))
		value := strings.TrimSpace(string(line))
		if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
			value = value[1 : n-1]
		}
		return value
	}
}

// readConfig reads the configuration in path, which may be compressed as
// /proc/config.gz is. A path of "" gives no configuration and no error.
func readConfig(path string) (Config, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("kernel configuration: %w", err)
	}
	defer f.Close()
	r, err := decompress(f)
	if err != nil {
		return nil, fmt.Errorf("kernel configuration %s: %w", path, err)
	}
	defer r.Close()
	c, err := readBounded(r, maxConfigBytes)
	if err != nil {
		return nil, fmt.Errorf("kernel configuration %s: %w", path, err)
	}
	return c, nil
}
