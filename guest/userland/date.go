package userland

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func date(c *ctx) int {
	var format string
	rest := c.args[:0:0]
	iso := ""
	for _, a := range c.args {
		switch {
		case strings.HasPrefix(a, "+"):
			format = a[1:]
		case a == "-Iseconds" || a == "--iso-8601=seconds":
			iso = "%Y-%m-%dT%H:%M:%S%:z"
		case a == "-I" || a == "-Idate" || a == "--iso-8601":
			iso = "%Y-%m-%d"
		case a == "-Ins" || a == "--iso-8601=ns":
			iso = "%Y-%m-%dT%H:%M:%S,%N%:z"
		default:
			rest = append(rest, a)
		}
	}
	c.args = rest
	if !c.getopt("d:r:s:uR", "date=d", "reference=r", "set=s", "utc=u", "universal=u", "rfc-email=R") {
		return 1
	}
	t := time.Now()
	switch {
	case c.has('r'):
		st, err := os.Stat(c.opt('r', ""))
		if err != nil {
			return c.fail(1, "%s: %s", c.opt('r', ""), reason(err))
		}
		t = st.ModTime()
	case c.has('d'), c.has('s'):
		s := c.opt('s', c.opt('d', ""))
		var err error
		if c.has('u') {
			time.Local = time.UTC
		}
		if t, err = parseDate(s, false); err != nil {
			return c.fail(1, "invalid date '%s'", s)
		}
		if c.has('s') {
			ts := unix.NsecToTimespec(t.UnixNano())
			if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
				return c.fail(1, "cannot set date: %s", reason(err))
			}
		}
	case len(c.args) > 0:
		return c.fail(1, "invalid date '%s'", c.args[0])
	}
	if c.has('u') {
		t = t.UTC()
	} else {
		t = t.Local()
	}
	switch {
	case format != "":
	case iso != "":
		format = iso
	case c.has('R'):
		format = "%a, %d %b %Y %H:%M:%S %z"
	default:
		format = "%a %b %e %H:%M:%S %Z %Y"
	}
	fmt.Fprintln(c.out, strftime(format, t))
	return 0
}

// strftime formats as strftime(3) in the C locale, with GNU date's %N, %s and
// %:z.
func strftime(format string, t time.Time) string {
	layouts := map[byte]string{
		'a': "Mon", 'A': "Monday", 'b': "Jan", 'h': "Jan", 'B': "January", 'd': "02", 'e': "_2", 'H': "15", 'I': "03", 'm': "01",
		'M': "04", 'p': "PM", 'S': "05", 'y': "06", 'Y': "2006", 'z': "-0700", 'Z': "MST", 'D': "01/02/06", 'F': "2006-01-02",
		'T': "15:04:05", 'R': "15:04", 'r': "03:04:05 PM", 'c': "Mon Jan _2 15:04:05 2006", 'x': "01/02/06", 'X': "15:04:05",
	}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		pad := true
		if format[i] == '-' && i+1 < len(format) {
			pad = false
			i++
		}
		if format[i] == ':' && i+1 < len(format) && format[i+1] == 'z' {
			i++
			b.WriteString(t.Format("-07:00"))
			continue
		}
		v := ""
		digits := 9
		if format[i] >= '1' && format[i] <= '9' && i+1 < len(format) && format[i+1] == 'N' {
			digits = int(format[i] - '0')
			i++
		}
		switch f := format[i]; f {
		case 'N':
			v = fmt.Sprintf("%09d", t.Nanosecond())[:digits]
		case 's':
			v = strconv.FormatInt(t.Unix(), 10)
		case 'j':
			v = fmt.Sprintf("%03d", t.YearDay())
		case 'k':
			v = fmt.Sprintf("%2d", t.Hour())
		case 'l':
			v = fmt.Sprintf("%2d", (t.Hour()+11)%12+1)
		case 'u':
			v = strconv.Itoa((int(t.Weekday())+6)%7 + 1)
		case 'w':
			v = strconv.Itoa(int(t.Weekday()))
		case 'C':
			v = fmt.Sprintf("%02d", t.Year()/100)
		case 'G':
			y, _ := t.ISOWeek()
			v = strconv.Itoa(y)
		case 'V':
			_, w := t.ISOWeek()
			v = fmt.Sprintf("%02d", w)
		case 'P':
			v = strings.ToLower(t.Format("PM"))
		case 'n':
			v = "\n"
		case 't':
			v = "\t"
		case '%':
			v = "%"
		default:
			l, ok := layouts[f]
			if !ok {
				v = "%" + string(f)
				break
			}
			v = t.Format(l)
		}
		if !pad && v != "" && v != "0" {
			if v = strings.TrimLeft(v, "0 "); v == "" {
				v = "0"
			}
		}
		b.WriteString(v)
	}
	return b.String()
}
