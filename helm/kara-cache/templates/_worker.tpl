{{/* The pod of a worker, for the DaemonSet and for the StatefulSet. */}}
{{- define "kara.pageDirs" -}}
{{- $count := ternary (len .Values.worker.cache.hostPaths) (int .Values.worker.cache.volumes) (eq .Values.worker.kind "DaemonSet") -}}
{{- $dirs := list -}}
{{- range $n := until $count }}{{- $dirs = append $dirs (printf "/var/cache/kara/%d" $n) }}{{- end -}}
{{ $dirs | toJson }}
{{- end -}}

{{- define "kara.workerPod" -}}
{{- $config := .Values.worker.config -}}
metadata:
  labels:
    {{- include "kara.selectorLabels" . | nindent 4 }}
    app.kubernetes.io/component: worker
    {{- with .Values.worker.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    checksum/config: {{ include "kara.toml" . | sha256sum }}
    {{- with .Values.worker.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "kara.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- include "kara.pullSecrets" . | nindent 2 }}
  # preStop, then pages are handed over, then the drain, then time to close the page store.
  terminationGracePeriodSeconds: {{ add .Values.worker.preStopSeconds $config.handover_timeout_s $config.drain_timeout_s 15 }}
  {{- with .Values.worker.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext: {{- include "kara.podSecurity" . | nindent 4 }}
  {{- if and (eq .Values.worker.kind "DaemonSet") .Values.worker.cache.takeOwnership }}
  initContainers:
    - name: own-page-directories
      image: {{ include "kara.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [chown, {{ printf "%d:%d" (int .Values.worker.runAsUser) (int .Values.worker.runAsUser) | quote }}
        {{- range (include "kara.pageDirs" . | fromJsonArray) }}, {{ . }}{{ end }}{{ if .Values.worker.nodeSocket.enabled }}, /run/kara{{ end }}]
      securityContext:
        runAsUser: 0
        runAsNonRoot: false
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL], add: [CHOWN]}
      resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
      volumeMounts: {{- include "kara.pageVolumeMounts" . | nindent 8 }}
        {{- if .Values.worker.nodeSocket.enabled }}
        - {name: sockets, mountPath: /run/kara}
        {{- end }}
  {{- end }}
  containers:
    - name: worker
      image: {{ include "kara.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [kara-worker, --log-level, {{ .Values.worker.logLevel }}]
      env:
        {{- include "kara.env" . | nindent 8 }}
        - name: KARA_ADVERTISE_HOST
          valueFrom: {fieldRef: {fieldPath: status.podIP}}
        {{- with .Values.worker.extraEnv }}{{ toYaml . | nindent 8 }}{{ end }}
      ports:
        {{- range $n := until (int $config.workers) }}
        - {name: data{{ if $n }}-{{ $n }}{{ end }}, containerPort: {{ add $config.port (mul 2 $n) }}}
        - {name: admin{{ if $n }}-{{ $n }}{{ end }}, containerPort: {{ add $config.admin_port (mul 2 $n) }}}
        {{- range $name, $port := (include "kara.alluxioPorts" $ | fromJson) }}
        - {name: {{ $name }}{{ if $n }}-{{ $n }}{{ end }}, containerPort: {{ add $port (mul 2 $n) }}}
        {{- end }}
        {{- end }}
      # Pages of an earlier run are served from the first second on, so a start is short.
      startupProbe:
        httpGet: {path: /healthz, port: admin}
        periodSeconds: 1
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /healthz, port: admin}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      # 503 as soon as the drain begins, while running reads still end.
      readinessProbe:
        httpGet: {path: /readyz, port: admin}
        periodSeconds: 5
        timeoutSeconds: 2
        failureThreshold: 1
      {{- if .Values.worker.preStopSeconds }}
      lifecycle:
        preStop:
          exec: {command: [sleep, {{ .Values.worker.preStopSeconds | quote }}]}
      {{- end }}
      securityContext: {{- include "kara.containerSecurity" . | nindent 8 }}
      resources: {{- toYaml .Values.worker.resources | nindent 8 }}
      volumeMounts:
        {{- include "kara.clientVolumeMounts" . | nindent 8 }}
        {{- include "kara.pageVolumeMounts" . | nindent 8 }}
        - {name: sockets, mountPath: /run/kara}
        {{- if .Values.s3Keys.existingSecret }}
        - {name: s3-keys, mountPath: /etc/kara/s3, readOnly: true}
        {{- end }}
        {{- range $name, $mount := .Values.mounts }}
        {{- if $mount.credentials }}
        - {name: mount-{{ $name }}, mountPath: /etc/kara/mounts/{{ $name }}, readOnly: true}
        {{- end }}
        {{- end }}
        {{- with .Values.worker.extraVolumeMounts }}{{ toYaml . | nindent 8 }}{{ end }}
  volumes:
    {{- include "kara.clientVolumes" . | nindent 4 }}
    {{- if .Values.s3Keys.existingSecret }}
    - name: s3-keys
      secret: {secretName: {{ .Values.s3Keys.existingSecret }}, defaultMode: 0440}
    {{- end }}
    - name: sockets
      {{- if .Values.worker.nodeSocket.enabled }}
      hostPath: {path: {{ .Values.worker.nodeSocket.hostPath }}, type: DirectoryOrCreate}
      {{- else }}
      emptyDir: {}
      {{- end }}
    {{- if eq .Values.worker.kind "DaemonSet" }}
    {{- range $n, $path := .Values.worker.cache.hostPaths }}
    - name: pages-{{ $n }}
      hostPath: {path: {{ $path }}, type: DirectoryOrCreate}
    {{- end }}
    {{- end }}
    {{- range $name, $mount := .Values.mounts }}
    {{- with $mount.credentials }}
    - name: mount-{{ $name }}
      secret:
        secretName: {{ .secretName }}
        defaultMode: 0440
        items:
          {{- range $option, $key := .keys }}
          - {key: {{ $key }}, path: {{ $option }}}
          {{- end }}
    {{- end }}
    {{- end }}
    {{- with .Values.worker.extraVolumes }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- with .Values.worker.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.worker.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.worker.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.worker.topologySpreadConstraints }}
  topologySpreadConstraints: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Listeners for existing Alluxio and S3 clients that are on: name -> port. */}}
{{- define "kara.alluxioPorts" -}}
{{- $ports := dict -}}
{{- range $name := list "list" "dict" "data" -}}
{{- $port := index $.Values.worker.config (printf "alluxio_%s_port" $name) -}}
{{- if $port }}{{- $ports = set $ports (printf "alluxio-%s" $name) (int $port) }}{{- end -}}
{{- end -}}
{{ $ports | toJson }}
{{- end -}}

{{- define "kara.pageVolumeMounts" -}}
{{- range $n, $dir := (include "kara.pageDirs" . | fromJsonArray) }}
- {name: pages-{{ $n }}, mountPath: {{ $dir }}}
{{- end }}
{{- end -}}
