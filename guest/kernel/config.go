package kernel

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxConfigBytes bounds a kernel configuration; today's are under 300 KiB.
const maxConfigBytes = 8 << 20

// A Config is a kernel's build configuration: option names without the
// CONFIG_ prefix, values as written ("y", "m", a number, a string without its
// quotes). Options that are not set are absent.
type Config map[string]string

// Enabled reports whether the option is built in or a module.
func (c Config) Enabled(option string) bool {
	v := c.Value(option)
	return v == "y" || v == "m"
}

// BuiltIn reports whether the option is built in.
func (c Config) BuiltIn(option string) bool { return c.Value(option) == "y" }

// Value returns the value of the option, or "" if it is not set. The CONFIG_
// prefix may be given or left out.
func (c Config) Value(option string) string {
	return c[strings.TrimPrefix(option, "CONFIG_")]
}

// parseConfig reads the format of .config and /boot/config-*.
func parseConfig(r io.Reader) (Config, error) {
	c := Config{}
	s := bufio.NewScanner(io.LimitReader(r, maxConfigBytes))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		name, value, ok := strings.Cut(strings.TrimSpace(s.Text()), "=")
		if !ok || !strings.HasPrefix(name, "CONFIG_") {
			continue
		}
		if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
			value = value[1 : n-1]
		}
		c[strings.TrimPrefix(name, "CONFIG_")] = value
	}
	return c, s.Err()
}

// readConfig parses the configuration in path, which may be compressed as
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
	c, err := parseConfig(r)
	if err != nil {
		return nil, fmt.Errorf("kernel configuration %s: %w", path, err)
	}
	return c, nil
}
