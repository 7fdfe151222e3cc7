// net/http of Go's standard library on both sides: HTTP/1.1, and HTTP/2 over its own TLS.
//
// usage: http serve PORT TLS-PORT CERTIFICATE-FILE | http call ADDRESS TLS-ADDRESS CERTIFICATE-FILE
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"os"
	"sync"
	"time"
)

func main() {
	if len(os.Args) != 5 {
		log.Fatal("see the top of http.go")
	}
	if os.Args[1] == "serve" {
		serve(os.Args[2], os.Args[3], os.Args[4])
	}
	call("http://"+os.Args[2], &http.Client{Transport: &http.Transport{}})
	roots := x509.NewCertPool()
	text, err := os.ReadFile(os.Args[4])
	must(err)
	roots.AppendCertsFromPEM(text)
	config := &tls.Config{RootCAs: roots, ServerName: "http.mesh"}
	call("https://"+os.Args[3], &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}})
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func serve(port, tlsPort, file string) {
	handler := http.NewServeMux()
	handler.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Proto", r.Proto)
		w.Header().Set("Trailer", "X-Sum")
		sum := sha256.New()
		_, _ = io.Copy(w, io.TeeReader(r.Body, sum))
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
	})
	handler.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < 50; i++ {
			fmt.Fprintf(w, "line %d\n", i)
			w.(http.Flusher).Flush()
		}
	})
	certificate := selfSigned(file)
	server := &http.Server{Addr: ":" + tlsPort, Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}}
	go func() { log.Fatal(server.ListenAndServeTLS("", "")) }()
	log.Fatal(http.ListenAndServe(":"+port, handler))
}

func selfSigned(file string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"http.mesh"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(err)
	must(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Forty requests by eight goroutines, of sizes from nothing to 2 MiB; a chunked answer; a request that is cancelled.
func call(base string, client *http.Client) {
	var group sync.WaitGroup
	lines := make([]string, 40)
	limit := make(chan struct{}, 8)
	for i := range lines {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			limit <- struct{}{}
			lines[i] = echo(base, client, bytes.Repeat([]byte{byte(i)}, i*i*1381))
			<-limit
		}(i)
	}
	group.Wait()
	for i, line := range lines {
		fmt.Println(i, line)
	}
	answer, err := client.Get(base + "/stream")
	must(err)
	body, err := io.ReadAll(answer.Body)
	must(err)
	fmt.Println(answer.Proto, answer.Status, len(body))
	answer, err = client.Get(base + "/nothing")
	must(err)
	fmt.Println(answer.Proto, answer.Status)
	must(answer.Body.Close())
}

func echo(base string, client *http.Client, body []byte) string {
	answer, err := client.Post(base+"/echo", "application/octet-stream", bytes.NewReader(body))
	must(err)
	defer answer.Body.Close()
	back, err := io.ReadAll(answer.Body)
	must(err)
	return fmt.Sprint(answer.Proto, " ", answer.Header.Get("X-Proto"), " ", answer.StatusCode, " ", bytes.Equal(back, body), " ", answer.Trailer.Get("X-Sum"))
}
