// Connects by Go's own runtime, which calls the kernel without any C library and waits by epoll: `dial ADDRESS PORT`.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

func main() {
	says := map[string]any{"ok": false}
	defer func() {
		line, _ := json.Marshal(says)
		fmt.Println(string(line))
		if says["ok"] != true {
			os.Exit(1)
		}
	}()
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(os.Args[1], os.Args[2]), 20*time.Second)
	if err != nil {
		says["error"] = err.Error()
		return
	}
	says["peer"] = conn.RemoteAddr().String()
	fmt.Fprint(conn, "sent by go")
	conn.(*net.TCPConn).CloseWrite()
	received, err := io.ReadAll(conn)
	says["received"] = string(received)
	says["ok"] = err == nil
}
