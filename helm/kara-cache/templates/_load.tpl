{{/* The pod of a load: `.root` is the chart's context, `.load` an entry of `loads`. */}}
{{- define "kara.loadArgs" -}}
{{- $args := list "kara" "load" .path "--watch" -}}
{{- with .replicas }}{{- $args = concat $args (list "--replicas" (. | toString)) -}}{{- end -}}
{{- with .bandwidth }}{{- $args = concat $args (list "--bandwidth" .) -}}{{- end -}}
{{- concat $args (default list .args) | toJson -}}
{{- end -}}

{{- define "kara.loadPod" -}}
metadata:
  labels:
    {{- include "kara.selectorLabels" .root | nindent 4 }}
    app.kubernetes.io/component: load
spec:
  restartPolicy: Never
  serviceAccountName: {{ include "kara.serviceAccountName" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- include "kara.pullSecrets" .root | nindent 2 }}
  securityContext: {{- include "kara.podSecurity" .root | nindent 4 }}
  containers:
    - name: load
      image: {{ include "kara.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args: {{ include "kara.loadArgs" .load }}
      env: {{- include "kara.env" .root | nindent 8 }}
      securityContext: {{- include "kara.containerSecurity" .root | nindent 8 }}
      resources: {{- toYaml .root.Values.prewarm.resources | nindent 8 }}
      volumeMounts: {{- include "kara.clientVolumeMounts" .root | nindent 8 }}
  volumes: {{- include "kara.clientVolumes" .root | nindent 4 }}
{{- end -}}
