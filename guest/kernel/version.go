package kernel

import "strings"

// compareReleases orders kernel releases ("6.12.117+deb12-cloud-amd64") by
// their numbers and words from left to right: numbers by value, so that 6.12
// comes after 6.2, and a release before the same release with more to it.
func compareReleases(a, b string) int {
	for a != "" && b != "" {
		var x, y string
		x, a = releaseToken(a)
		y, b = releaseToken(b)
		if c := compareTokens(x, y); c != 0 {
			return c
		}
	}
	return strings.Compare(a, b)
}

func releaseToken(s string) (token, rest string) {
	n := 1
	for n < len(s) && isDigit(s[n]) == isDigit(s[0]) {
		n++
	}
	return s[:n], s[n:]
}

func compareTokens(x, y string) int {
	if !isDigit(x[0]) || !isDigit(y[0]) {
		return strings.Compare(x, y)
	}
	x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
	if len(x) != len(y) {
		return len(x) - len(y)
	}
	return strings.Compare(x, y)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
