package userland

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func stty(c *ctx) int {
	t, err := unix.IoctlGetTermios(0, unix.TCGETS)
	if err != nil {
		return c.fail(1, "'standard input': %s", reason(err))
	}
	flags := map[string]struct {
		word *uint32
		bit  uint32
	}{
		"echo": {&t.Lflag, unix.ECHO}, "icanon": {&t.Lflag, unix.ICANON}, "isig": {&t.Lflag, unix.ISIG}, "echoe": {&t.Lflag, unix.ECHOE},
		"echok": {&t.Lflag, unix.ECHOK}, "iexten": {&t.Lflag, unix.IEXTEN}, "opost": {&t.Oflag, unix.OPOST}, "onlcr": {&t.Oflag, unix.ONLCR},
		"icrnl": {&t.Iflag, unix.ICRNL}, "ixon": {&t.Iflag, unix.IXON}, "brkint": {&t.Iflag, unix.BRKINT}, "istrip": {&t.Iflag, unix.ISTRIP},
	}
	size, _ := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
	if len(c.args) == 0 || c.args[0] == "-a" {
		if size != nil && len(c.args) > 0 {
			fmt.Fprintf(c.out, "rows %d; columns %d;\n", size.Row, size.Col)
		}
		var words []string
		for n, f := range flags {
			if *f.word&f.bit == 0 {
				n = "-" + n
			}
			words = append(words, n)
		}
		slices.SortFunc(words, func(a, b string) int { return strings.Compare(strings.TrimPrefix(a, "-"), strings.TrimPrefix(b, "-")) })
		fmt.Fprintln(c.out, strings.Join(words, " "))
		return 0
	}
	for i := 0; i < len(c.args); i++ {
		a := c.args[i]
		switch name := strings.TrimPrefix(a, "-"); {
		case a == "size":
			if size == nil {
				return c.fail(1, "no size")
			}
			fmt.Fprintf(c.out, "%d %d\n", size.Row, size.Col)
		case a == "-g":
			fmt.Fprintf(c.out, "%x:%x:%x:%x\n", t.Iflag, t.Oflag, t.Cflag, t.Lflag)
		case strings.Count(a, ":") == 3:
			if _, err := fmt.Sscanf(a, "%x:%x:%x:%x", &t.Iflag, &t.Oflag, &t.Cflag, &t.Lflag); err != nil {
				return c.fail(1, "invalid argument '%s'", a)
			}
		case a == "raw" || a == "-cooked":
			t.Iflag, t.Oflag = 0, t.Oflag&^unix.OPOST
			t.Lflag &^= unix.ISIG | unix.ICANON
			t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		case a == "sane" || a == "-raw" || a == "cooked":
			t.Iflag |= unix.BRKINT | unix.ICRNL | unix.IXON
			t.Oflag |= unix.OPOST | unix.ONLCR
			t.Lflag |= unix.ISIG | unix.ICANON | unix.IEXTEN | unix.ECHO | unix.ECHOE | unix.ECHOK
		case (a == "rows" || a == "cols" || a == "columns") && i+1 < len(c.args) && size != nil:
			i++
			n, err := strconv.ParseUint(c.args[i], 10, 16)
			if err != nil {
				return c.fail(1, "invalid integer argument: '%s'", c.args[i])
			}
			if a == "rows" {
				size.Row = uint16(n)
			} else {
				size.Col = uint16(n)
			}
			if err := unix.IoctlSetWinsize(0, unix.TIOCSWINSZ, size); err != nil {
				return c.fail(1, "%s", reason(err))
			}
		default:
			f, ok := flags[name]
			if !ok {
				return c.fail(1, "invalid argument '%s'", a)
			}
			if name == a {
				*f.word |= f.bit
			} else {
				*f.word &^= f.bit
			}
		}
	}
	if err := unix.IoctlSetTermios(0, unix.TCSETSW, t); err != nil {
		return c.fail(1, "%s", reason(err))
	}
	return 0
}
